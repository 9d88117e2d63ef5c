"""A finding gets the user's line where the record knows it, and keeps the one it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from diag.record.reader import Run, read_run
from diag.record.schema import PHASES
from diag.reports.findings.case import finding
from diag.reports.locations import locate, parse_site
from diag.reports.model import Location
from helpers.records import released_together, write_run

SITES = {"data": "/home/u/train.py:41", "backward": "train.py:44"}


def run_with(tmp_path: Path, events: dict[int, list[tuple[object, ...]]] | None = None) -> Run:
    own = np.full((2, 5, len(PHASES)), 10)
    write_run(tmp_path, released_together(own), name="run", events=events)
    run = read_run(tmp_path / "run")
    told = {r: replace(one, facts={**one.facts, "sites": SITES}) for r, one in run.ranks.items()}
    return replace(run, ranks=told)


def test_a_slow_phase_is_found_where_it_begins(tmp_path: Path) -> None:
    slow = finding("slow-rank", "warning", "t", [], "h", ranks=(1,), phase="data", term="straggler")
    common = finding("data-bound", "warning", "t", [], "h", phase="data", term="data")
    host = finding("slow-rank", "warning", "t", [], "h", ranks=(1,), phase="host", term="straggler")
    found = locate([slow, common, host], run_with(tmp_path))
    assert [one.location for one in found] == [
        Location("/home/u/train.py", 41), Location("/home/u/train.py", 41), None,
    ]  # fmt: skip


def test_a_known_line_is_kept(tmp_path: Path) -> None:
    known = Location("loss.py", 7)
    one = finding("comm-bound", "info", "t", [], "h", phase="data", location=known)
    assert locate([one], run_with(tmp_path))[0].location == known


def test_a_save_is_found_where_it_took_longest(tmp_path: Path) -> None:
    saves: list[tuple[object, ...]] = [
        (10, 5, 1, "checkpoint", '{"site": "short.py:1"}'),
        (20, 50, 2, "checkpoint", '{"site": "long.py:2"}'),
    ]
    one = finding("rank0-work", "info", "t", [], "h", ranks=(0,), phase="host")
    assert locate([one], run_with(tmp_path, {0: saves}))[0].location == Location("long.py", 2)


def test_sites_that_are_none() -> None:
    assert parse_site("") is None
    assert parse_site("bucket 3") is None
    assert parse_site(None) is None
    assert parse_site("C:odd:12") == Location("C:odd", 12)
