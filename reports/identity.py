"""The accounting identity on column means: pure arithmetic, over any leading axes.

A run's step splits exactly into

    T = Σ_k k_p  +  straggler  +  jitter  +  inner  +  transfer  +  residual

    k_p        lower median over the ranks of the mean of phase k: the typical rank, phase by phase
    straggler  max_r mean A - Σ_k k_p
    jitter     mean max_r A - max_r mean A
    inner      waiting for others at inner synchronizations (see replay.py)
    transfer   the rest of the exposed time
    residual   time that no phase covers

and the lost time T - T* is that split minus q times the baseline's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diag.record.schema import LOCAL_PHASES
from diag.reports.columns import Columns
from diag.reports.model import TermName
from diag.reports.panel import F64

# Which phases a systemic term holds, as positions in LOCAL_PHASES.
SYSTEMIC: dict[TermName, tuple[int, ...]] = {
    "compute": (LOCAL_PHASES.index("forward"), LOCAL_PHASES.index("backward")),
    "optimizer": (LOCAL_PHASES.index("optimizer"),),
    "data": (LOCAL_PHASES.index("data"),),
    "copy": (LOCAL_PHASES.index("copy"),),
    "host": (LOCAL_PHASES.index("host"),),
}


@dataclass(frozen=True)
class Parts:
    """One run's step, split; ms. Their sum is `step`, over any leading axes."""

    typical: F64  # [..., 6]
    straggler: F64
    jitter: F64
    inner: F64
    transfer: F64
    residual: F64
    step: F64


def lower_median(values: F64, axis: int) -> F64:
    """The median that is one of the values; of an even number, the smaller middle one."""
    middle = (values.shape[axis] - 1) // 2
    return np.asarray(np.partition(values, middle, axis=axis).take(middle, axis=axis))


def split(means: Columns) -> Parts:
    typical = lower_median(means.local, axis=-2)
    typical_self = typical.sum(axis=-1)
    slowest = means.self_time.max(axis=-1)
    # A network that costs nothing is never slower than the real one: no more than was blocked.
    blocked = means.labelled - means.self_max
    inner = np.clip(means.inner, 0.0, np.maximum(blocked, 0.0))
    return Parts(
        typical=typical,
        straggler=slowest - typical_self,
        jitter=means.self_max - slowest,
        inner=inner,
        transfer=blocked - inner,
        residual=means.step - means.labelled,
        step=means.step,
    )


def ideal_share(run: Columns, base: Columns | None) -> F64:
    """q = (B/N)/(b_M/M): how much of the baseline's step is ideal here; NaN where unknown."""
    if base is None:
        return np.full(run.step.shape, np.nan)
    return np.asarray((run.work / run.num_ranks) / (base.work / base.num_ranks))


def lost(run: Parts, base: Parts | None, q: F64) -> dict[TermName, F64]:
    """Every term in ms; they sum to `run.step - ideal_step(run, base, q)`.

    Without a baseline the ideal step is the typical rank's self-time: systemic terms are then 0.
    """
    if base is None:
        zero = np.zeros_like(run.step)
        systemic: dict[TermName, F64] = dict.fromkeys(SYSTEMIC, zero)
        return systemic | _own(run)
    excess = run.typical - q[..., None] * base.typical
    terms: dict[TermName, F64] = {
        name: excess[..., list(phases)].sum(axis=-1) for name, phases in SYSTEMIC.items()
    }
    theirs = _own(base)
    return terms | {name: ms - q * theirs[name] for name, ms in _own(run).items()}


def ideal_step(run: Parts, base: Parts | None, q: F64) -> F64:
    """T*, ms."""
    return np.asarray(run.typical.sum(axis=-1)) if base is None else np.asarray(q * base.step)


def _own(parts: Parts) -> dict[TermName, F64]:
    return {
        "straggler": parts.straggler,
        "jitter": parts.jitter,
        "serialization": parts.inner,
        "transfer": parts.transfer,
        "residual": parts.residual,
    }
