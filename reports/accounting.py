"""What accounting for one run yields. Milliseconds per step throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diag.reports.model import Estimate, Term, TermName

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
    work: float | None  # samples or tokens a step; None where unknown


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
        straggler_threshold_ms: the 99th percentile of the straggler term among equal ranks;
            None where the steps are too few to tell.
        straggler_significant: the straggler term is above it, and some rank with it.
        jitter_expected_ms: what the ranks' ordinary, non-rotating spread would give as jitter.
        jitter_excess_ms: jitter less that; may be negative.
        jitter_significant: the excess is more than chance.
        jitter_phase: where the late rank of a step spends its excess.
        interval_kind: "between-runs" where runs were resampled on every side.
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
    def throughput(self) -> float | None:
        """`unit` per second."""
        return None if self.samples_per_step is None else 1e3 * self.samples_per_step / self.step_ms

    @property
    def baseline_throughput(self) -> float | None:
        if self.baseline_samples_per_step is None or self.baseline_step_ms is None:
            return None
        return 1e3 * self.baseline_samples_per_step / self.baseline_step_ms

    @property
    def slow_rank(self) -> bool:
        """Whether `slow-rank` is worth a finding: significant, and at least 1% of the step."""
        ms = self.term("straggler").ms
        return self.straggler_significant and (ms or 0.0) >= MATERIAL_SHARE * self.step_ms

    @property
    def rotating(self) -> bool:
        """Whether `jitter` is worth a finding: its excess over chance is, and is 1% of the step."""
        return self.jitter_significant and self.jitter_excess_ms >= MATERIAL_SHARE * self.step_ms
