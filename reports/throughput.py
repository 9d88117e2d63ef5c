"""Work per step: the samples or tokens that all ranks together put into a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from diag.reports.panel import F64, Bool, Panel

Unit = Literal["samples", "tokens"]
_VARIES = 0.01  # tokens per sample within 1% of each other are a fixed length


def work_per_step(panel: Panel, used: Bool, unit: Unit) -> F64:
    """Σ over ranks, per used step; NaN where a rank's number is unknown. Shape [used steps]."""
    per_rank = panel.samples if unit == "samples" else panel.tokens
    return np.asarray(per_rank[:, used].sum(axis=0))


def choose_unit(runs: Sequence[tuple[Panel, Bool]]) -> Unit:
    """Tokens where every run counts them and sequences vary, or where only tokens are known.

    runs: each run's panel with the mask of its used steps; the baseline among them.
    """
    tokens = all(_known(work_per_step(p, used, "tokens")) for p, used in runs)
    if not tokens:
        return "samples"
    if not all(_known(work_per_step(p, used, "samples")) for p, used in runs):
        return "tokens"
    return "tokens" if any(_length_varies(p, used) for p, used in runs) else "samples"


def _known(work: F64) -> bool:
    return len(work) > 0 and bool(np.isfinite(work).all() and (work > 0).all())


def _length_varies(panel: Panel, used: Bool) -> bool:
    samples = panel.samples[:, used]
    tokens = panel.tokens[:, used]
    length = tokens[samples > 0] / samples[samples > 0]
    return len(length) > 0 and float(np.ptp(length)) > _VARIES * float(length.mean())
