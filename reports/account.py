"""Where the lost time went: the accounting of one run against its baseline.

`account` joins the pieces: columns (arrays per step), identity (the split, exact), stats
(intervals and significance). Milliseconds per step throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from diag.record.schema import LOCAL_PHASES
from diag.reports import identity
from diag.reports.columns import Columns, columns
from diag.reports.identity import Parts
from diag.reports.model import TERMS, Estimate, Term, TermName
from diag.reports.panel import F64, Bool, Panel
from diag.reports.replay import Replay
from diag.reports.savings import savings
from diag.reports.throughput import Unit, work_per_step

MATERIAL_SHARE = 0.01  # of the step: below it nothing is worth acting on


@dataclass(frozen=True)
class Straggler:
    """A rank significantly slower than the typical one."""

    rank: int
    excess_ms: float  # its mean self-time less the typical rank's
    phase: str  # where most of the excess is
    phase_excess_ms: dict[str, float]  # every phase but exposed_comm; sums to excess_ms


@dataclass(frozen=True)
class RankMeans:
    """One rank's mean step; phases_ms holds all of PHASES."""

    rank: int
    phases_ms: dict[str, float]
    self_ms: float
    step_ms: float  # release to release


@dataclass(frozen=True)
class Accounting:
    """The identity with its intervals. Σ terms = step_ms - ideal_ms, residual included.

    Attributes:
        kind: "estimated" without a baseline or without samples: ideal_ms then is the typical
            rank's self-time, speed-up and efficiency are upper bounds, systemic terms are None.
        q: the share of the baseline's step that is this run's ideal step; None if estimated.
        speedup, efficiency: with intervals; efficiency is 0..1.
        speedup_ideal: N / M.
        compute_ms: the compute term split in "forward" and "backward"; None if estimated.
        typical_ms: the typical rank k_p by phase, exposed_comm left out.
        typical_self_ms: A_p; slowest_self_ms: M_A = mean over steps of max_r A;
            mean_self_ms: the mean of A over ranks and steps.
        inner_ms, exposed_ms: this run's own W (None if unknown) and X, before the baseline's
            are taken off.
        stragglers: ranks significantly above the typical one, worst first.
        straggler_threshold_ms: the 99th percentile of the straggler term among equal ranks.
        straggler_significant: the straggler term is above it, and some rank with it.
        jitter_expected_ms: what the ranks' ordinary, non-rotating spread would give as jitter.
        jitter_excess_ms: jitter less that; may be negative.
        jitter_significant: the excess is more than chance.
        jitter_phase: where the late rank of a step spends its excess.
        block_length: of the bootstrap, in steps; None where there are no intervals.
        notes: what the reader should know about these numbers.
    """

    world_size: int
    baseline_world_size: int | None
    steps_used: int
    kind: Literal["measured", "estimated"]
    unit: Literal["samples", "tokens"]
    samples_per_step: float | None
    baseline_samples_per_step: float | None
    q: float | None
    step_ms: float
    ideal_ms: float
    baseline_step_ms: float | None
    speedup: Estimate
    speedup_ideal: float
    efficiency: Estimate
    terms: tuple[Term, ...]
    compute_ms: dict[str, float] | None
    typical_ms: dict[str, float]
    baseline_typical_ms: dict[str, float] | None
    typical_self_ms: float
    slowest_self_ms: float
    mean_self_ms: float
    inner_ms: float | None
    exposed_ms: float
    per_rank: tuple[RankMeans, ...]
    stragglers: tuple[Straggler, ...]
    straggler_threshold_ms: float | None
    straggler_significant: bool
    jitter_expected_ms: float
    jitter_excess_ms: float
    jitter_significant: bool
    jitter_phase: str | None
    interval_level: float = 0.95
    interval_kind: Literal["within-run", "between-runs"] = "within-run"
    block_length: int | None = None
    notes: tuple[str, ...] = ()

    def term(self, name: TermName) -> Term:
        return next(t for t in self.terms if t.term == name)

    @property
    def slow_rank(self) -> bool:
        """Whether `slow-rank` is worth a finding: significant, and at least 1% of the step."""
        ms = self.term("straggler").ms
        return self.straggler_significant and (ms or 0.0) >= MATERIAL_SHARE * self.step_ms

    @property
    def rotating(self) -> bool:
        """Whether `jitter` is worth a finding: its excess over chance is, and is 1% of the step."""
        return self.jitter_significant and self.jitter_excess_ms >= MATERIAL_SHARE * self.step_ms


def account(
    run: Panel,
    baseline: Panel | None = None,
    *,
    used: Bool | None = None,
    baseline_used: Bool | None = None,
    unit: Unit = "samples",
    samples_per_step: float | None = None,
    baseline_samples_per_step: float | None = None,
) -> Accounting:
    """Account for a run's lost time.

    Args:
        run, baseline: their panels; no baseline yields an estimate.
        used, baseline_used: [S] masks of steady steps (see steady.py); all steps by default.
        unit: what throughput counts (see throughput.choose_unit).
        samples_per_step, baseline_samples_per_step: of all ranks together, where the record
            does not know them.

    Raises:
        ValueError: a mask leaves no step.
    """
    steps, played = _measure(run, used, unit, samples_per_step, "run")
    notes = list(played.notes)
    base: Columns | None = None
    if baseline is not None:
        base, base_played = _measure(
            baseline, baseline_used, unit, baseline_samples_per_step, "baseline"
        )
        notes += [f"baseline: {n}" for n in base_played.notes]
        if _q(steps, base) is None:
            base = None
            notes.append(
                f"the {unit} per step are unknown, so the baseline cannot be scaled: an estimate"
            )
    return _assemble(run, baseline, steps, base, unit, played.known, tuple(notes))


def _measure(
    panel: Panel, used: Bool | None, unit: Unit, work: float | None, name: str
) -> tuple[Columns, Replay]:
    mask = np.ones(panel.num_steps, np.bool_) if used is None else used
    if not mask.any():
        raise ValueError(f"no steady step is left in the {name}, of {panel.num_steps}")
    counted = work_per_step(panel, mask, unit)
    return columns(panel, mask, counted if work is None else np.full(len(counted), float(work)))


def _assemble(
    run: Panel,
    baseline: Panel | None,
    steps: Columns,
    base: Columns | None,
    unit: Unit,
    waits_known: bool,
    notes: tuple[str, ...],
) -> Accounting:
    means = steps.mean()
    parts = identity.split(means)
    base_parts = None if base is None else identity.split(base.mean())
    q = _q(steps, base) if base is not None else None
    ideal_ms = float(identity.ideal_step(parts, base_parts, q or 1.0))
    step_ms = float(parts.step)
    ideal_speedup = run.num_ranks / (baseline.num_ranks if baseline and base is not None else 1)
    efficiency = ideal_ms / step_ms
    slow: tuple[int, ...] = ()
    stragglers = tuple(_straggler(run, means, parts, r) for r in slow)
    lost = identity.lost(parts, base_parts, q or 1.0)
    saved = savings(steps, parts, base_parts, q or 1.0, slow)
    expected = 0.0
    known = {
        "compute": base is not None, "optimizer": base is not None, "data": base is not None,
        "copy": base is not None, "host": base is not None, "serialization": waits_known,
    }  # fmt: skip
    terms = tuple(
        _term(name, float(lost[name]), saved[name], step_ms, ideal_speedup * efficiency)
        if known.get(name, True)
        else Term(name, None, None, None, None, None, None)
        for name in TERMS
    )
    return Accounting(
        world_size=run.num_ranks,
        baseline_world_size=baseline.num_ranks if baseline and base is not None else None,
        steps_used=len(steps.step),
        kind="estimated" if base is None else "measured",
        unit=unit,
        samples_per_step=_finite(means.work),
        baseline_samples_per_step=None if base is None else _finite(base.mean().work),
        q=q,
        step_ms=step_ms,
        ideal_ms=ideal_ms,
        baseline_step_ms=None if base_parts is None else float(base_parts.step),
        speedup=Estimate(ideal_speedup * efficiency),
        speedup_ideal=ideal_speedup,
        efficiency=Estimate(efficiency),
        terms=terms,
        compute_ms=None if base_parts is None else _compute(parts, base_parts, q or 1.0),
        typical_ms=_by_phase(parts.typical),
        baseline_typical_ms=None if base_parts is None else _by_phase(base_parts.typical),
        typical_self_ms=float(parts.typical.sum()),
        slowest_self_ms=float(means.self_max),
        mean_self_ms=float(means.self_time.mean()),
        inner_ms=float(parts.inner) if waits_known else None,
        exposed_ms=float(parts.transfer),
        per_rank=(),
        stragglers=stragglers,
        straggler_threshold_ms=None,
        straggler_significant=False,
        jitter_expected_ms=expected,
        jitter_excess_ms=float(parts.jitter) - expected,
        jitter_significant=False,
        jitter_phase=None,
        notes=notes,
    )


def _q(steps: Columns, base: Columns) -> float | None:
    """(B/N)/(b_M/M), the share of the baseline's step that is ideal here; None where unknown."""
    mine = float(steps.work.mean()) / steps.num_ranks
    theirs = float(base.work.mean()) / base.num_ranks
    ratio = mine / theirs if theirs > 0 else float("nan")
    return ratio if np.isfinite(ratio) and ratio > 0 else None


def _finite(value: F64) -> float | None:
    return float(value) if np.isfinite(value) else None


def _by_phase(values: F64) -> dict[str, float]:
    return {p: float(v) for p, v in zip(LOCAL_PHASES, values, strict=True)}


def _compute(run: Parts, base: Parts, q: float) -> dict[str, float]:
    excess = _by_phase(run.typical - q * base.typical)
    return {"forward": excess["forward"], "backward": excess["backward"]}


def _straggler(run: Panel, means: Columns, parts: Parts, position: int) -> Straggler:
    excess = _by_phase(means.local[position] - parts.typical)
    return Straggler(
        run.ranks[position], sum(excess.values()), max(excess, key=excess.__getitem__), excess
    )


def _term(name: TermName, ms: float, saved: float | None, step_ms: float, speedup: float) -> Term:
    without = None
    if saved is not None and saved < step_ms:
        without = speedup * step_ms / (step_ms - saved)
    return Term(name, ms, None, None, ms / step_ms, saved, without)
