"""What curing chosen ranks would give back, step by step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diag.reports.findings.case import Case
from diag.reports.findings.periodic import occasional_workers
from diag.reports.panel import F64


def saved_by_curing(case: Case, ranks: Iterable[int]) -> float:
    """Ms per step gained if these ranks were as fast as the rest.

    A rank that is always slow becomes typical in every phase where it is slower; one that works
    from time to time becomes like the others in just those steps. The slowest rank of every
    step is then looked up anew, so that a rank hidden behind a slower one gains nothing.
    """
    before = case.self_ms()
    after = before.copy()
    workers = occasional_workers(case)
    stragglers = {s.rank: s for s in case.accounting.stragglers} if case.accounting else {}
    for rank in ranks:
        position = case.position(rank)
        if rank in workers:
            after[position] = np.minimum(before[position], _others(before, position))
        elif rank in stragglers:
            excess = stragglers[rank].phase_excess_ms.values()
            after[position] -= sum(max(ms, 0.0) for ms in excess)
    return float((before.max(axis=0) - after.max(axis=0)).mean())


def _others(self_ms: F64, position: int) -> F64:
    """The median of the other ranks, step by step."""
    return np.asarray(np.median(np.delete(self_ms, position, axis=0), axis=0))
