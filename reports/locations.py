"""The user's line behind a finding: where its rank's phase begins, or where it saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from diag.record.reader import Run
from diag.reports.model import Finding, Location
from diag.reports.observations import Event, load_events


def parse_site(site: object) -> Location | None:
    """ "file:line" as the probes write it."""
    if not isinstance(site, str):
        return None
    file, _, line = site.rpartition(":")
    return Location(file, int(line)) if file and line.isdigit() else None


def locate(findings: Iterable[Finding], run: Run) -> tuple[Finding, ...]:
    """The findings, with a line where the record knows one and the finding has none."""
    saves = load_events(run, "checkpoint")
    return tuple(
        one if one.location is not None else replace(one, location=_location(one, run, saves))
        for one in findings
    )


def _location(finding: Finding, run: Run, saves: Iterable[Event]) -> Location | None:
    if finding.code == "rank0-work" and finding.term is None:
        return _longest_save(finding.ranks, saves)
    if finding.phase is None:
        return None
    # A finding about all ranks names none of them: any rank's line will do.
    for rank in finding.ranks or tuple(run.ranks):
        sites = run.ranks[rank].facts.get("sites") if rank in run.ranks else None
        if isinstance(sites, dict):
            return parse_site(sites.get(finding.phase))
    return None


def _longest_save(ranks: tuple[int, ...], saves: Iterable[Event]) -> Location | None:
    own = [save for save in saves if save.rank in ranks]
    longest = max(own, key=lambda save: save.duration_ns, default=None)
    return parse_site(longest.detail.get("site")) if longest is not None else None
