"""Where the lost time went: the accounting of one run against its baseline.

`account` joins the pieces: columns (arrays per step), identity (the split, exact), stats,
intervals and significance (how sure), savings (what a remedy gives back).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diag.record.schema import PHASES
from diag.reports import identity
from diag.reports.accounting import MATERIAL_SHARE, Accounting, RankMeans, Straggler
from diag.reports.assembly import Assembly
from diag.reports.columns import NS_PER_MS, columns, release_to_release_ns
from diag.reports.panel import F64, Bool, Panel
from diag.reports.stats import Pooled, pool
from diag.reports.throughput import Unit, work_per_step

__all__ = ["MATERIAL_SHARE", "Accounting", "Measured", "RankMeans", "Straggler", "account"]


@dataclass(frozen=True)
class Measured:
    """A further run of the same kind: its panel, and the mask of its steady steps."""

    panel: Panel
    used: Bool


@dataclass(frozen=True)
class _Side:
    """One side of the comparison, measured."""

    pooled: Pooled
    waits_known: bool
    notes: tuple[str, ...]


def account(
    run: Panel,
    baseline: Panel | None = None,
    *,
    used: Bool | None = None,
    baseline_used: Bool | None = None,
    unit: Unit = "samples",
    samples_per_step: float | None = None,
    baseline_samples_per_step: float | None = None,
    more_runs: Sequence[Measured] = (),
    more_baselines: Sequence[Measured] = (),
) -> Accounting:
    """Account for a run's lost time.

    Args:
        run, baseline: their panels; no baseline yields an estimate.
        used, baseline_used: [S] masks of steady steps (see steady.py); all steps by default.
        unit: what throughput counts (see throughput.choose_unit).
        samples_per_step, baseline_samples_per_step: of all ranks together; they overrule what
            the record counted.
        more_runs, more_baselines: comparable runs with as many ranks. Values then are means over
            the runs, every run equally; with three or more, intervals hold between runs.

    Raises:
        ValueError: a mask leaves no step, or runs of one side differ in their ranks.
    """
    side = _side([_measured(run, used), *more_runs], unit, samples_per_step, "run")
    base: _Side | None = None
    notes = list(side.notes)
    if baseline is not None:
        runs = [_measured(baseline, baseline_used), *more_baselines]
        base = _side(runs, unit, baseline_samples_per_step, "baseline")
        notes += [f"baseline: {n}" for n in base.notes]
        if not _positive(identity.ideal_share(side.pooled.centre, base.pooled.centre)):
            base = None
            notes.append(f"the {unit} per step are not known: without them this is an estimate")
    waits_known = side.waits_known and (base is None or base.waits_known)
    if not waits_known:
        side, base = _merged(side), None if base is None else _merged(base)
    rows = _rank_means(run, _measured(run, used).used, unit)
    base_pool = None if base is None else base.pooled
    return Assembly(run.ranks, side.pooled, base_pool, unit, waits_known).accounting(rows, notes)


def _measured(panel: Panel, used: Bool | None) -> Measured:
    return Measured(panel, np.ones(panel.num_steps, np.bool_) if used is None else used)


def _side(runs: Sequence[Measured], unit: Unit, work: float | None, name: str) -> _Side:
    if len({one.panel.num_ranks for one in runs}) > 1:
        raise ValueError(f"the runs pooled as {name} differ in their number of ranks")
    parts = []
    for one in runs:
        if not one.used.any():
            raise ValueError(f"no steady step is left in a {name} of {one.panel.num_steps} steps")
        counted = work_per_step(one.panel, one.used, unit)
        stated = counted if work is None else np.full(len(counted), float(work))
        parts.append(columns(one.panel, one.used, stated))
    replays = [played for _, played in parts]
    notes = dict.fromkeys(note for played in replays for note in played.notes)
    known = all(played.known for played in replays)
    return _Side(pool([built for built, _ in parts]), known, tuple(notes))


def _merged(side: _Side) -> _Side:
    """Serialization not told from transfer, so that both sides are split alike."""
    steps = side.pooled.steps
    sizes = side.pooled.sizes
    without = replace(steps, inner=np.zeros_like(steps.inner))
    return replace(side, pooled=pool(without.parted(sizes)))


def _positive(value: F64) -> bool:
    return bool(np.isfinite(value) and value > 0)


def _rank_means(panel: Panel, used: Bool, unit: Unit) -> tuple[RankMeans, ...]:
    phases = panel.phases_ns[:, used].mean(axis=1) / NS_PER_MS
    own = panel.self_ns[:, used].mean(axis=1) / NS_PER_MS
    step = release_to_release_ns(panel)[:, used].mean(axis=1) / NS_PER_MS
    work = (panel.samples if unit == "samples" else panel.tokens)[:, used].mean(axis=1)
    return tuple(
        RankMeans(
            rank=rank,
            phases_ms=dict(zip(PHASES, phases[r].tolist(), strict=True)),
            self_ms=float(own[r]),
            step_ms=float(step[r]),
            work=float(work[r]) if np.isfinite(work[r]) else None,
        )
        for r, rank in enumerate(panel.ranks)
    )
