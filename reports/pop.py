"""POP's multiplicative efficiencies (https://pop-coe.eu/node/69), beside the identity.

computation   T* / Ā           does a rank compute as little as the ideal step takes?
load balance  Ā / M_A          do all ranks compute equally long?
serialization M_A / (M_A + W)  do they wait for each other inside the step?
transfer      (M_A + W) / T    does the network keep up?

Ā is the mean self-time over ranks and steps, M_A the mean over steps of the slowest rank's, W
the waiting at inner synchronizations. The product is the efficiency T*/T. Each is at most 1
for a run that loses there; computation can exceed 1 where a rank gains (caches).
"""

from __future__ import annotations

from diag.reports.accounting import Accounting
from diag.reports.model import Pop


def pop(accounting: Accounting) -> Pop:
    """The factors. Where W is unknown, transfer holds both and serialization is None.

    An estimate knows no ideal computation: that factor is None, and efficiency an upper bound.
    """
    mean, slowest = accounting.mean_self_ms, accounting.slowest_self_ms
    inner = accounting.inner_ms
    computed = slowest + (inner or 0.0)
    return Pop(
        computation=_ratio(accounting.ideal_ms, mean) if accounting.kind == "measured" else None,
        load_balance=_ratio(mean, slowest),
        serialization=None if inner is None else _ratio(slowest, computed),
        transfer=_ratio(computed, accounting.step_ms),
        efficiency=accounting.efficiency.value,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
