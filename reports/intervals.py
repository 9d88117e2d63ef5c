"""95% intervals for every term, the speed-up and the efficiency.

The basic bootstrap interval, value - quantiles(replicates - centre), is right where a statistic
is smooth. Two parts of the identity are not: the slowest rank's mean is the maximum of noisy
means, the typical rank's their lower median. Among equal ranks both are biased, by up to 2.4
standard errors of a rank's mean with 64 ranks, and resampling the ranks as they came shows only
a part of it, since the noise of the record itself already sets them apart. So replicates are
drawn in two worlds:

- as recorded: every rank's means are taken at their word;
- tied: in each phase, ranks whose means differ by no more than noise would are moved to their
  common mean, which is what they have if they are equal (the idea of moment selection, Andrews
  and Soares 2010, and of Andrews 2000 on bootstraps at a boundary).

Each limit is the wider of the two. Where ranks truly differ or truly do not, the worlds agree
or the tied one is right; between, the recorded one covers.

Jitter has a second trap: an event too rare to be in the record resamples to none. Its upper
limit is at least that of the share of steps in which another rank than the slowest was last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diag.reports.columns import Columns
from diag.reports.identity import ideal_share, ideal_step, lost, split
from diag.reports.panel import F64
from diag.reports.stats import Resamples

LEVEL = 0.95
_TIED = 0.99  # ranks are tied unless further apart than this share of replicates
Limits = dict[str, tuple[float, float]]
_NEVER_NEGATIVE = ("straggler", "jitter", "serialization")


def intervals(run: Resamples, base: Resamples | None) -> Limits:
    """(low, high) by term in ms, and for "efficiency" (0..1). They hold the value itself.

    A value biased by more than its noise, a straggler among equal ranks, lies at the edge.
    """
    value = _quantities(run.side.centre, None if base is None else base.side.centre)
    limits: Limits = {}
    for world, other in _worlds(run, base):
        spread = _deviations(world, other)
        for name, centre in value.items():
            low, high = (centre - np.quantile(spread[name], [1 - _TAIL, _TAIL])).tolist()
            before = limits.get(name, (float(centre), float(centre)))
            limits[name] = (min(low, before[0]), max(high, before[1]))
    rare = _rare_events(run.side.steps)
    limits["jitter"] = (limits["jitter"][0], max(limits["jitter"][1], rare))
    if base is None or base.side.centre.num_ranks == 1:
        for name in _NEVER_NEGATIVE:
            low, high = limits[name]
            # The straggler term is below zero where the typical rank, put together phase by
            # phase, is slower than every real one.
            floor = min(0.0, float(value[name]))
            limits[name] = (max(low, floor), max(high, floor))
    return limits


_TAIL = (1 - LEVEL) / 2


def _quantities(run: Columns, base: Columns | None) -> dict[str, F64]:
    parts = split(run)
    base_parts = None if base is None else split(base)
    q = ideal_share(run, base)
    terms: dict[str, F64] = {str(k): ms for k, ms in lost(parts, base_parts, q).items()}
    return terms | {"efficiency": ideal_step(parts, base_parts, q) / parts.step}


def _deviations(run: Resamples, base: Resamples | None) -> dict[str, F64]:
    """Replicates less their centre, by quantity: [K]."""
    drawn = _quantities(run.means, None if base is None else base.means)
    centre = _quantities(run.side.centre, None if base is None else base.side.centre)
    return {name: values - centre[name] for name, values in drawn.items()}


def _worlds(run: Resamples, base: Resamples | None) -> Iterator[tuple[Resamples, Resamples | None]]:
    yield run, base
    if run.side.centre.num_ranks > 1:
        yield _tied(run), base if base is None or base.side.centre.num_ranks == 1 else _tied(base)


def _tied(drawn: Resamples) -> Resamples:
    """The same side, with ranks that noise alone may set apart moved to their common means."""
    side, means = drawn.side, drawn.means
    phases = range(means.local.shape[-1])
    shift = np.stack(
        [_ties(side.centre.local[:, k], means.local[:, :, k]) for k in phases], axis=-1
    )
    steps = side.steps.shifted(shift)
    top = np.asarray(side.share @ steps.self_max)
    tops = top + drawn.widening * (drawn.weights @ steps.self_max - top)
    centre = replace(side.centre, local=side.centre.local + shift, self_max=top)
    return replace(
        drawn,
        side=replace(side, steps=steps, centre=centre),
        means=replace(means, local=means.local + shift, self_max=tops),
    )


def _ties(mean: F64, drawn: F64) -> F64:
    """How far each rank of one phase is moved to be tied to the others; 0 for ranks apart. [R]

    The ranks farthest from the median are set apart until the spread of the rest is no more
    than its replicates show. mean: [R]; drawn: [K, R].
    """
    noise = drawn - mean
    kept = np.arange(len(mean))
    while len(kept) > 1:
        among = noise[:, kept] - noise[:, kept].mean(axis=1, keepdims=True)
        usual = np.quantile((among**2).sum(axis=1), _TIED)
        if ((mean[kept] - mean[kept].mean()) ** 2).sum() <= usual:
            break
        distance = np.abs(mean[kept] - np.median(mean[kept]))
        kept = kept[np.argsort(distance, kind="stable")[: -max(1, len(kept) // 8)]]
    shift = np.zeros(len(mean))
    shift[kept] = mean[kept].mean() - mean[kept]
    return shift


def _rare_events(steps: Columns) -> float:
    """97.5% upper limit of jitter from how often another rank than the slowest was the last, ms.

    Of that share the limit is sin²(asin √((k + 1) / (n + 1)) + 0.98 / √n), the arcsine transform
    of a binomial (Anscombe 1948): 3.9 of n for none seen. Times the mean lateness of those seen,
    or, with none, the spread of the margin by which the slowest rank led.
    """
    own = steps.self_time
    if own.shape[1] == 1:
        return 0.0
    slowest = own[:, int(own.mean(axis=0).argmax())]
    lead = steps.self_max - slowest
    seen, n = lead[lead > 0], len(lead)
    size = seen.mean() if len(seen) else (slowest - np.sort(own, axis=1)[:, -2]).std()
    angle = np.arcsin(np.sqrt((len(seen) + 1) / (n + 1))) + 0.98 / np.sqrt(n)
    return float(np.sin(min(angle, np.pi / 2)) ** 2 * size)
