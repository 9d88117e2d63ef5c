"""Whether a straggler or a rotation is more than noise. Both terms are never negative.

**Straggler.** If all ranks were equal, their labels would mean nothing within any block of
steps. So blocks' labels are permuted independently, and the straggler term recomputed: its 99th
percentile is the threshold. Ranks above it are listed, then taken out and the rest is tested
anew (step-down, Romano and Wolf 2005), so that one very slow rank does not hide a slow one.
A listed rank must also stand out against its own noise, in case it is noisier than the others.

**Jitter.** Ordinary noise makes a different rank the slowest in each step, too. What it would
give is the mean of the maximum of one lognormal draw per rank, with the ranks' means as
recorded and their spread measured where lateness does not reach: the range from the 5th to the
25th percentile of a rank's self-time relative to the (lower) median of the others. The excess
of jitter over that is what rotates.

Known limits: noise whose upper tail is heavier than a lognormal's is late steps, and counts as
excess. Where more than half of a rank's steps are late, lateness is its spread, and no excess
remains. Of lateness that strikes one rank in every step, with two ranks, about nine tenths are
seen; lateness below the spread itself is only partly seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from diag.reports.identity import lower_median
from diag.reports.panel import F64, I64, Bool
from diag.reports.stats import Resamples, fixed_b

_LEVEL = 0.99
_PERMUTATIONS = 500
_MAX_BLOCKS, _MIN_BLOCKS = 32, 8
_LOW, _HIGH = 0.05, 0.25  # the percentiles between which a spread is free of lateness
_RELATIVE_ERROR = 2.07  # of that range, times √steps, for normal noise


@dataclass(frozen=True)
class SlowRanks:
    """Attributes:
    positions: ranks significantly above the typical one, worst first.
    threshold_ms: of the straggler term among equal ranks; None where there are too few steps.
    significant: the term is above it, and some rank with it.
    """

    positions: tuple[int, ...]
    threshold_ms: float | None
    significant: bool


@dataclass(frozen=True)
class Rotation:
    """Attributes:
    expected_ms: jitter that the ranks' ordinary spread gives.
    significant: whether there is more.
    """

    expected_ms: float
    significant: bool


def slow_ranks(drawn: Resamples) -> SlowRanks:
    """Test every rank's mean self-time against the typical rank's."""
    centre = drawn.side.centre
    excess = centre.self_time - lower_median(centre.local, axis=-2).sum()
    own_noise = _stands_out(drawn, excess)
    blocks = _block_sums(drawn)
    left = np.argsort(-excess, kind="stable")  # by what they do: their names must not matter
    first: float | None = None
    listed: list[int] = []
    while len(left) > 1:
        threshold = _threshold(blocks[:, left])
        first = threshold if first is None else first
        found = left[(excess[left] > threshold) & own_noise[left]]
        if not len(found):
            break
        listed.extend(found.tolist())
        left = left[~np.isin(left, found)]
    return SlowRanks(tuple(sorted(listed, key=lambda r: -excess[r])), first or 0.0, bool(listed))


def rotation(drawn: Resamples) -> Rotation:
    """Test jitter against what the ranks' ordinary spread gives."""
    own, mean = drawn.side.steps.self_time, drawn.side.centre.self_time
    if own.shape[1] == 1 or (own <= 0).any():
        return Rotation(0.0, significant=False)
    expected = expected_maximum(mean, relative_spread(own)) - float(mean.max())
    jitter = drawn.means.self_max - drawn.means.self_time.max(axis=-1)
    excess = float(drawn.side.centre.self_max - mean.max()) - expected
    error = math.hypot(float(jitter.std()), expected * _RELATIVE_ERROR / math.sqrt(own.size / 2))
    enough = NormalDist().inv_cdf(_LEVEL) * error
    return Rotation(expected, significant=excess > enough)


def expected_maximum(mean: F64, spread: F64) -> float:
    """Mean of the largest of one lognormal draw per rank. mean, spread of the logarithm: [R]."""
    spread = np.maximum(spread, 1e-9)
    middle = np.log(mean) - spread**2 / 2
    low = float(np.exp(middle - 8 * spread).max())
    high = float(np.exp(middle + 8 * spread).max())
    grid = np.linspace(low, high, 1001)
    below = _normal_cdf((np.log(grid)[:, None] - middle) / spread).prod(axis=1)
    above = 1 - below
    return low + float((above[1:] + above[:-1]).sum() / 2 * (grid[1] - grid[0]))


def relative_spread(own: F64) -> F64:
    """Standard deviation of the logarithm of each rank's self-time, lateness left out. [R]

    own: [S, R], positive.
    """
    log = np.log(own)
    log -= np.median(log, axis=0)
    apart = log - _median_of_others(log)
    low, high = np.quantile(apart, [_LOW, _HIGH], axis=0)
    return np.asarray((high - low) / _normal_range(own.shape[1]))


def _median_of_others(values: F64) -> F64:
    """For every rank the lower median over all the others, step by step. [S, R]"""
    ranks = values.shape[1]
    middle = (ranks - 2) // 2
    order = np.argsort(values, axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    return np.where(place <= middle, ranked[:, [middle + 1]], ranked[:, [middle]])


@lru_cache(maxsize=128)
def _normal_range(ranks: int) -> float:
    """What `relative_spread` measures on independent standard normal noise."""
    draws = np.random.default_rng(ranks).standard_normal((200_000 // ranks + 1, ranks))
    apart = draws - _median_of_others(draws)
    low, high = np.quantile(apart, [_LOW, _HIGH])
    return float(high - low)


def _normal_cdf(values: F64) -> F64:
    erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(values / math.sqrt(2)), np.float64)
    return np.asarray(0.5 * (1 + erf))


def _stands_out(drawn: Resamples, excess: F64) -> Bool:
    """Ranks whose excess is significant against the noise of that same excess. [R]"""
    typical = lower_median(drawn.means.local, axis=-2).sum(axis=-1)
    noise = (drawn.means.self_time - typical[:, None]).std(axis=0)
    quantile = NormalDist().inv_cdf(1 - (1 - _LEVEL) / len(excess))
    return np.asarray(excess > quantile * noise)


def _block_sums(drawn: Resamples) -> F64:
    """Weighted sums over blocks of consecutive steps: [blocks, R, 6]; together the means.

    Rather few and long blocks: permuting needs no more, and noise correlated over less than a
    block then does no harm.
    """
    weighted = drawn.side.steps.local * drawn.side.share[:, None, None]
    steps = len(weighted)
    number = int(np.clip(steps // (2 * drawn.length), min(_MIN_BLOCKS, steps), _MAX_BLOCKS))
    edges: I64 = np.linspace(0, steps, number + 1).astype(np.int64)[:-1]
    return np.asarray(np.add.reduceat(weighted, edges, axis=0))


def _threshold(blocks: F64) -> float:
    """99th percentile of the straggler term when every block's rank labels are permuted."""
    number, ranks, _ = blocks.shape
    rng = np.random.default_rng([number, ranks])
    order = rng.random((_PERMUTATIONS, number, ranks)).argsort(axis=2)
    mean = np.zeros((_PERMUTATIONS, ranks, blocks.shape[2]))
    for block in range(number):
        mean += blocks[block][order[:, block]]
    straggler = mean.sum(axis=-1).max(axis=-1) - lower_median(mean, axis=1).sum(axis=-1)
    centre = float(straggler.mean())
    return centre + fixed_b(1 / number) * (float(np.quantile(straggler, _LEVEL)) - centre)
