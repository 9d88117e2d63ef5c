"""Resampling whole steps in blocks, so that noise shared by the ranks stays shared.

Circular block bootstrap (Politis and Romano 1992) over steps. The block length is the larger
of √n and the automatic rule of Politis and White (2004), as corrected by Patton, Politis and
White (2009), over the step time and every phase: that rule minimizes the error of the
variance, and coverage wants longer blocks (Sun, Phillips and Jin 2008). Two published
corrections then widen the replicates around the mean, because blocks see too little variance:

- fixed-b critical values (Kiefer and Vogelsang 2005, Bartlett kernel, to which the block
  bootstrap is equivalent): longer blocks leave fewer of them;
- AR(1) prewhitening (Andrews and Monahan 1992): blocks cut correlation at their borders.

With three or more comparable runs, runs are resampled first and blocks within them
(hierarchical), widened by Student's t over the number of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diag.reports.columns import Columns, widened
from diag.reports.panel import F64, I64

REPLICATES = 1000
MIN_STEPS = 8  # below it there are no intervals
MIN_RUNS = 3  # from which on runs are resampled too
_NORMAL_975 = 1.959964
# Student's t at 0.975, by degrees of freedom from 2 on (Fisher and Yates, table III).
_STUDENT_975 = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


@dataclass(frozen=True)
class Pooled:
    """One side of the comparison: the used steps of its runs, one run after the other.

    Attributes:
        sizes: how many steps each run has.
        share: [S] how much each step counts; sums to one, every run equally.
        centre: the weighted means of the columns.
    """

    steps: Columns
    sizes: tuple[int, ...]
    share: F64
    centre: Columns


@dataclass(frozen=True)
class Resamples:
    """A side with its replicates.

    Attributes:
        weights: [K, S], rows summing to one.
        means: the replicates' column means, widened around the centre; leading axis K.
        widening: how far.
        length: block length in steps.
        between_runs: whether runs were resampled.
    """

    side: Pooled
    weights: F64
    means: Columns
    widening: float
    length: int
    between_runs: bool


def pool(runs: Sequence[Columns]) -> Pooled:
    """Runs of equally many ranks as one side."""
    sizes = tuple(len(r.step) for r in runs)
    share = np.concatenate([np.full(n, 1 / (len(runs) * n)) for n in sizes])
    steps = runs[0] if len(runs) == 1 else Columns.joined(runs)
    return Pooled(steps, sizes, share, steps.resampled(share[None]).first())


def resample(side: Pooled, replicates: int = REPLICATES) -> Resamples | None:
    """Replicates of a side; None with fewer than MIN_STEPS steps in any of its runs.

    Deterministic: the generator is seeded from the shapes.
    """
    if min(side.sizes) < MIN_STEPS:
        return None
    runs = side.steps.parted(side.sizes)
    rng = np.random.default_rng([*side.sizes, side.steps.num_ranks])
    length = max(block_steps(r) for r in runs)
    between = len(runs) >= MIN_RUNS
    factor = _student(len(runs)) if between else max(_widening(r, length) for r in runs)
    chosen = _run_shares(len(runs), replicates, rng, between)
    drawn = [resampling_weights(n, min(length, n), replicates, rng) for n in side.sizes]
    weights = np.concatenate([w * c[:, None] for w, c in zip(drawn, chosen.T, strict=True)], axis=1)
    means = widened(side.steps.resampled(weights), side.centre, factor)
    return Resamples(side, weights, means, factor, length, between)


def autocovariance(series: F64) -> F64:
    """Of each column around its mean, averaged over the columns. series: [S, C]; returns [S]."""
    size = 1 << (2 * len(series) - 1).bit_length()
    spectrum = np.fft.rfft(series - series.mean(axis=0), size, axis=0)
    power = (spectrum * spectrum.conj()).real.mean(axis=1)
    return np.asarray(np.fft.irfft(power, size)[: len(series)] / len(series))


def block_length(covariance: F64) -> float:
    """Politis and White's length for the circular bootstrap, from the autocovariance [S]."""
    n = len(covariance)
    if n < MIN_STEPS or covariance[0] <= 0:
        return 1.0
    run = max(5, int(np.log10(n)))
    quiet = np.abs(covariance / covariance[0]) < 2 * np.sqrt(np.log10(n) / n)
    longest = int(np.ceil(np.sqrt(n))) + run
    last = next((m for m in range(longest) if quiet[m + 1 : m + 1 + run].all()), longest)
    bandwidth = min(2 * max(last, 1), longest, n - 1)
    lag = np.arange(1, bandwidth + 1)
    taper = np.clip(2 * (1 - lag / bandwidth), 0, 1)  # the flat-top window
    slope = 2 * float((taper * lag * covariance[lag]).sum())
    spectrum = float(covariance[0] + 2 * (taper * covariance[lag]).sum())
    if spectrum <= 0:
        return 1.0
    best = float((1.5 * slope**2 / spectrum**2 * n) ** (1 / 3))
    return min(best, float(np.ceil(min(3 * np.sqrt(n), n / 3))))


def block_steps(steps: Columns) -> int:
    """Block length for all columns of a run, in whole steps; at least four blocks."""
    n = len(steps.step)
    longest = max(block_length(c) for c in _covariances(steps))
    return int(np.clip(np.ceil(max(longest, np.sqrt(n))), 1, max(n // 4, 1)))


def resampling_weights(n: int, length: int, replicates: int, rng: np.random.Generator) -> F64:
    """How much of each replicate every step is: [K, n], rows summing to one."""
    blocks = -(-n // length)
    padded = n + length
    starts = rng.integers(n, size=(replicates, blocks))
    starts += padded * np.arange(replicates)[:, None]
    size = replicates * padded
    edges = _count(starts, size) - _count(starts + length, size + 1)[:size]
    counts = np.cumsum(edges).reshape(replicates, padded)
    counts[:, :length] += counts[:, n:]  # the steps are taken as a circle
    return np.asarray(counts[:, :n] / (blocks * length))


def fixed_b(share: float) -> float:
    """Kiefer and Vogelsang's 95% critical value over the normal one; share: block / series."""
    return (1.96 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3) / 1.96


def prewhitening(correlation: float, length: int) -> float:
    """Standard error of an AR(1) mean over what blocks of `length` see of it."""
    lag = np.arange(1, length)
    seen = 1 + 2 * float(((1 - lag / length) * correlation**lag).sum())
    return float(np.sqrt((1 + correlation) / (1 - correlation) / seen))


def _covariances(steps: Columns) -> list[F64]:
    """Autocovariances that matter: of the step time, and of each phase apart from its rank-mean."""
    local = steps.local
    own = local - local.mean(axis=1, keepdims=True) if steps.num_ranks > 1 else local
    phases = [_standardized(own[:, :, k]) for k in range(own.shape[2])]
    return [autocovariance(c) for c in (steps.step[:, None], *phases) if c.size]


def _standardized(series: F64) -> F64:
    """Columns that vary, scaled to a variance of one."""
    scale = series.std(axis=0)
    varies = scale > 1e-9 * np.abs(series).max(initial=0.0)
    return np.asarray(series[:, varies] / scale[varies])


def _widening(steps: Columns, length: int) -> float:
    n = len(steps.step)
    lag_one = max((c[1] / c[0] for c in _covariances(steps) if c[0] > 0), default=0.0)
    # Kendall's correction of the bias that the estimated mean brings.
    correlation = float(np.clip(lag_one + (1 + 3 * lag_one) / n, 0.0, 0.9))
    return fixed_b(length / n) * prewhitening(correlation, length)


def _student(runs: int) -> float:
    degrees = min(runs - 1, len(_STUDENT_975) + 1)
    return _STUDENT_975[degrees - 2] / _NORMAL_975 * float(np.sqrt(runs / (runs - 1)))


def _run_shares(runs: int, replicates: int, rng: np.random.Generator, between: bool) -> F64:
    """[K, runs] each run's share of each replicate."""
    if not between:
        return np.full((replicates, runs), 1 / runs)
    return rng.multinomial(runs, np.full(runs, 1 / runs), size=replicates) / runs


def _count(positions: I64, size: int) -> I64:
    return np.bincount(positions.ravel(), minlength=size)
