"""How long the ranks stood ready without a core: measured by the kernel, kept in the gauges.

The gauge is the main thread's run delay (/proc/<pid>/schedstat): time in which it could have
run but waited in a run queue. It is cumulative, so two readings inside the steady steps suffice.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diag.reports.accounting import Accounting
from diag.reports.findings.case import CoreWait
from diag.reports.loaded import Loaded


def core_wait(loaded: Loaded, base: Loaded, accounting: Accounting) -> CoreWait | None:
    """None where one of the runs has too few readings, or nothing was measured against."""
    share, usual = waiting_share(loaded), waiting_share(base)
    if share is None or usual is None or accounting.q is None:
        return None
    ideal_ms = accounting.q * (accounting.baseline_step_ms or 0.0)
    return CoreWait(share * accounting.step_ms, usual * ideal_ms)


def waiting_share(loaded: Loaded) -> float | None:
    """Of the steady steps' time, 0..1: the lower median over the ranks. None where unknown."""
    panel, steps = loaded.panel, np.flatnonzero(loaded.used)
    if not len(steps):
        return None
    begin, end = panel.start_ns[:, steps[0]], panel.end_ns[:, steps[-1]]
    found = [
        _share(loaded.run.ranks[rank].gauges, int(begin[r]), int(end[r]))
        for r, rank in enumerate(panel.ranks)
    ]
    known = sorted(share for share in found if share is not None)
    return known[(len(known) - 1) // 2] if known else None


def _share(gauges: pa.Table, begin_ns: int, end_ns: int) -> float | None:
    """From the first to the last reading inside; in a short run, from and to the next outside."""
    readings = gauges.select(["time_ns", "runqueue_wait_ns"]).drop_null()
    time, waited = (np.asarray(readings[i].to_numpy(), np.int64) for i in range(2))
    first = int(np.searchsorted(time, begin_ns))
    last = int(np.searchsorted(time, end_ns, side="right")) - 1
    if last <= first:
        first, last = max(first - 1, 0), min(last + 1, len(time) - 1)
    if last <= first or time[last] <= time[first]:
        return None
    return float(np.clip((waited[last] - waited[first]) / (time[last] - time[first]), 0.0, 1.0))
