"""rank0-work: one rank does something from time to time, and all the others wait for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diag.record.schema import StepFlag
from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import NS_PER_MS, Case, finding, severity
from diag.reports.findings.cures import saved_by_curing
from diag.reports.findings.periodic import Periodic, occasional_workers
from diag.reports.model import Finding, Severity

_MOSTLY = 0.8  # of the flagged steps have the same slowest rank
_CLEAR = 5.0  # times the ordinary gap between the slowest and the typical rank

_HINT = (
    "Do it seldom, do it on every rank in parallel, or do it in the background: a thread or "
    "process for logging and evaluation, torch.distributed.checkpoint.async_save for saving."
)


def rank0_work(case: Case) -> tuple[Finding, ...]:
    """Findings for periodic work inside steady steps, and for flagged saves and evaluations."""
    accounting = case.accounting
    if accounting is None:
        return ()
    return (*_periodic(case, accounting), *_flagged(case, accounting))


def _periodic(case: Case, accounting: Accounting) -> list[Finding]:
    workers = occasional_workers(case).values()
    found = (_periodic_finding(case, accounting, one) for one in workers)
    return [one for one in found if one is not None]


def _periodic_finding(case: Case, accounting: Accounting, work: Periodic) -> Finding | None:
    ms = work.ms * float(work.heavy.mean())
    level = severity(ms / accounting.step_ms)
    if level is None:
        return None
    return finding(
        "rank0-work",
        level,
        f"Rank {work.rank} works every {work.every} steps while the others wait",
        _periodic_evidence(work, ms),
        _HINT,
        ms=ms,
        term="straggler",
        ranks=(work.rank,),
        phase=work.phase,
        would_save_ms=saved_by_curing(case, [work.rank]),
    )


def _periodic_evidence(periodic: Periodic, ms: float) -> list[str]:
    return [
        f"every {periodic.every} steps, {f.ms(periodic.ms)} each, in {periodic.phase}: "
        f"{f.ms(ms)} a step on average",
        f"seen in {int(periodic.heavy.sum())} of {len(periodic.heavy)} steps; "
        "in the others the rank is as fast as the rest",
    ]


@dataclass(frozen=True)
class _Held:
    """What the others waited for in flagged steps."""

    rank: int
    num_steps: int
    seconds: float
    num_last: int


def _flagged(case: Case, accounting: Accounting) -> list[Finding]:
    found = []
    for flag, name in ((StepFlag.CHECKPOINT, "checkpoint"), (StepFlag.EVALUATION, "evaluation")):
        held = _held(case, flag, accounting)
        if held is None:
            continue
        # Spread over all steps, so that it compares with the terms, of which it is no part.
        ms = 1e3 * held.seconds / case.panel.num_steps
        level = severity(ms / accounting.step_ms)
        if level is not None:
            found.append(_flagged_finding(held, name, ms, level))
    return found


def _held(case: Case, flag: StepFlag, accounting: Accounting) -> _Held | None:
    """Who kept the others waiting in the flagged steps, if it was one rank and clearly so."""
    flagged = case.panel.flagged(flag)
    if not flagged.any() or case.panel.num_ranks < 2:
        return None
    self_ms = case.panel.self_ns[:, flagged] / NS_PER_MS
    last = self_ms.argmax(axis=0)
    position = int(np.bincount(last).argmax())
    num_last = int((last == position).sum())
    others = np.delete(self_ms, position, axis=0)
    waited = np.maximum(self_ms[position] - np.median(others, axis=0), 0.0)
    ordinary = accounting.slowest_self_ms - accounting.typical_self_ms
    clear = float(waited.mean()) > max(_CLEAR * ordinary, 0.05 * accounting.step_ms)
    if num_last < _MOSTLY * len(last) or not clear:
        return None
    told = _told(case, flag)
    seconds = float(waited.sum()) / 1e3 if told is None else told
    return _Held(case.panel.ranks[position], len(last), seconds, num_last)


def _told(case: Case, flag: StepFlag) -> float | None:
    """What the wall clock says the others waited, so that the report says it once."""
    if case.wall is None:
        return None
    is_checkpoint = flag == StepFlag.CHECKPOINT
    return case.wall.checkpoint_waited_s if is_checkpoint else case.wall.evaluation_waited_s


def _flagged_finding(held: _Held, name: str, ms: float, level: Severity) -> Finding:
    times = f.plural(held.num_steps, name)
    return finding(
        "rank0-work",
        level,
        f"The others wait while rank {held.rank} is busy with {'a ' if name == 'checkpoint' else ''}{name}",
        [
            f"they waited {f.seconds(held.seconds)} in {times}: {f.ms(ms)} a step over the whole run",
            f"rank {held.rank} worked longest in {held.num_last} of them; "
            "these steps are left out of the terms",
        ],
        _HINT,
        ms=ms,
        ranks=(held.rank,),
        phase="host",
        would_save_ms=ms,
    )
