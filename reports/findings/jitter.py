"""jitter: in each step another rank is late, and all the others wait for it."""

from __future__ import annotations

import numpy as np

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import Case, finding, severity
from diag.reports.findings.periodic import occasional_workers
from diag.reports.model import Finding
from diag.reports.significance import expected_maximum, relative_spread

_HINTS = {
    "data": "Give the loaders room: more workers, a larger prefetch_factor, batches of equal cost.",
    "host": (
        "Look for what strikes ranks at random: garbage collection (gc.disable() and collect at "
        "the same step everywhere), logging, other processes on the nodes."
    ),
}
_HINT = (
    "Even out the work of a step: batches of equal length or token count, no rank-local "
    "branches; then look for other processes on the nodes."
)


def jitter(case: Case) -> tuple[Finding, ...]:
    """One finding where ranks take turns at being late more than their ordinary spread explains."""
    accounting = case.accounting
    if accounting is None or not accounting.rotating:
        return ()
    term = accounting.term("jitter")
    excess = _excess_ms(case, accounting)
    level = severity(excess / accounting.step_ms)
    if level is None:
        return ()
    phase = accounting.jitter_phase
    return (
        finding(
            "jitter",
            level,
            f"A different rank is late in each step{f', mostly in {phase}' if phase else ''}",
            _evidence(case, accounting),
            _HINTS.get(phase or "", _HINT),
            ms=term.ms,
            term="jitter",
            phase=phase,
            would_save_ms=term.would_save_ms,
        ),
    )


def _excess_ms(case: Case, accounting: Accounting) -> float:
    """Jitter beyond the ranks' ordinary spread.

    Work that one rank does every k steps lifts that rank's mean above what it is in ordinary
    steps, where the others' plain noise then looks like lateness: such steps are left aside.
    """
    workers = occasional_workers(case)
    if not workers:
        return accounting.jitter_excess_ms
    heavy = np.any([work.heavy for work in workers.values()], axis=0)
    own = case.self_ms()[:, ~heavy].T
    mean = own.mean(axis=0)
    return float(own.max(axis=1).mean()) - expected_maximum(mean, relative_spread(own))


def _evidence(case: Case, accounting: Accounting) -> list[str]:
    self_ms = case.self_ms()
    times_last = np.bincount(self_ms.argmax(axis=0), minlength=len(self_ms)) / self_ms.shape[1]
    often, seldom = int(times_last.argmax()), int(times_last.argmin())
    return [
        f"the last rank of a step arrives {f.ms(accounting.term('jitter').ms)} later than the "
        "slowest rank does on average",
        f"the ranks' ordinary spread would give {f.ms(accounting.jitter_expected_ms)}",
        f"rank {case.panel.ranks[often]} is last in {f.percent(float(times_last[often]))} of the "
        f"steps, rank {case.panel.ranks[seldom]} in {f.percent(float(times_last[seldom]))}",
    ]
