"""Detectors: each a pure function from a Case to findings, composed here in one list."""

from __future__ import annotations

from collections.abc import Callable, Collection

from diag.reports.findings.case import Case
from diag.reports.findings.comm_bound import comm_bound
from diag.reports.findings.cpu_oversubscribed import cpu_oversubscribed
from diag.reports.findings.data_bound import data_bound
from diag.reports.findings.jitter import jitter
from diag.reports.findings.rank0_work import rank0_work
from diag.reports.findings.short_run import short_run
from diag.reports.findings.slow_rank import slow_rank
from diag.reports.findings.small_batch import small_batch
from diag.reports.findings.unsupported_topology import unsupported_topology
from diag.reports.model import Finding

Detector = Callable[[Case], tuple[Finding, ...]]

DETECTORS: tuple[Detector, ...] = (
    slow_rank,
    rank0_work,
    data_bound,
    comm_bound,
    cpu_oversubscribed,
    small_batch,
    jitter,
    unsupported_topology,
    short_run,
)
_RANK = {"critical": 0, "warning": 1, "info": 2}


def find(case: Case, ignore: Collection[str] = ()) -> tuple[Finding, ...]:
    """Every detector's findings but those ignored: the worst first, then the largest."""
    found = [one for detect in DETECTORS for one in detect(case) if one.code not in ignore]
    return tuple(sorted(found, key=lambda one: (_RANK[one.severity], -(one.ms or 0.0))))
