"""What removing one cause would save. Unlike the terms, savings do not add up.

Each cause is taken out of every step and the slowest rank is looked up anew: repairing the
slowest rank only helps until the next one is the slowest.
"""

from __future__ import annotations

import numpy as np

from diag.reports.identity import SYSTEMIC, Parts
from diag.reports.model import TermName
from diag.reports.panel import F64
from diag.reports.stats import Pooled


def savings(
    side: Pooled, run: Parts, base: Parts | None, q: F64, slow: tuple[int, ...]
) -> dict[TermName, float | None]:
    """Milliseconds per step that each term's remedy would give back; None where unknown.

    slow: positions of the listed straggler ranks. The waiting W and the transfer X stay as
    they are, but for their own remedies.
    """
    excess = side.centre.local - run.typical
    lowered = np.zeros_like(excess)
    lowered[list(slow)] = np.maximum(excess[list(slow)], 0)
    saved: dict[TermName, float | None] = {
        name: None if base is None else _saved(side, _systemic(side, run, base, q, list(phases)))
        for name, phases in SYSTEMIC.items()
    }
    return saved | {
        "straggler": _saved(side, lowered.sum(axis=1)),
        "jitter": float(run.jitter),
        "serialization": float(run.inner),
        "transfer": max(float(run.transfer), 0.0),
        "residual": None,
    }


def _systemic(side: Pooled, run: Parts, base: Parts, q: F64, phases: list[int]) -> F64:
    """What each rank would lose of these phases: the common excess, as far as it has it. [R]"""
    ideal = float(q) * float(base.typical[phases].sum())
    excess = max(float(run.typical[phases].sum()) - ideal, 0.0)
    own = side.centre.local[:, phases].sum(axis=1) - ideal
    return np.asarray(np.clip(own, 0.0, excess))


def _saved(side: Pooled, less: F64) -> float:
    """Mean over steps of how much earlier the slowest rank would be, were each A lower by `less`."""
    sooner = side.steps.self_max - (side.steps.self_time - less).max(axis=1)
    return float(side.share @ sooner)
