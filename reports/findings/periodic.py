"""Tells work that one rank does every k steps from a rank that is always slow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports.findings.case import NS_PER_MS, Case
from diag.reports.panel import F64, I64, Bool

# A loader that runs dry every k steps is a slow rank's data wait, not work.
_WORK_PHASES = ("host", "forward", "optimizer", "copy")
_MOST_HEAVY = 0.5  # of the steps: a rank slow in more of them is a slow rank
_HOLDS = 0.8  # of the rank's excess is in the heavy steps
_FEWEST = 3  # heavy steps: two make one gap, and one gap is no rhythm
_REGULAR = 0.75  # of the gaps are a multiple of k
_LEVEL = 0.01
_CLEAR = 4.0  # heavy steps stand out by this many spreads of the light ones


@dataclass(frozen=True)
class Periodic:
    """Extra work in few, regular steps.

    Attributes:
        every: steps from one to the next.
        ms: extra work in each of them.
        phase: where most of it is.
        heavy: which of the used steps hold it.
    """

    rank: int
    every: int
    ms: float
    phase: str
    heavy: Bool


def occasional_workers(case: Case) -> dict[int, Periodic]:
    """Ranks that work from time to time while the others wait, by rank number.

    Looked for among the stragglers and the slowest rank: a few large pauses are too few for a
    straggler to be significant, but not for a rhythm. Waiting for data, or for a device that
    slows down, is no work.
    """
    if case.accounting is None or case.panel.num_ranks < 2 or not case.used.any():
        return {}
    slowest = case.panel.ranks[int(case.self_ms().mean(axis=1).argmax())]
    ranks = dict.fromkeys([*(s.rank for s in case.accounting.stragglers), slowest])
    found = {rank: periodic_work(case, rank) for rank in ranks}
    return {r: p for r, p in found.items() if p is not None and p.phase in _WORK_PHASES}


def periodic_work(case: Case, rank: int) -> Periodic | None:
    """The periodic extra work of `rank`, or None where it has none or is slow all the time."""
    excess = excess_ms(case, rank)
    heavy = _heavy(excess)
    if heavy is None:
        return None
    steps = case.panel.index[case.used][heavy]
    every = _period(steps)
    if every is None or _chance(len(steps), every, case.panel.num_ranks) > _LEVEL:
        return None
    light = float(excess[~heavy].mean())
    return Periodic(
        rank=rank,
        every=every,
        ms=float(excess[heavy].mean()) - light,
        phase=_phase(case, rank, heavy),
        heavy=heavy,
    )


def excess_ms(case: Case, rank: int) -> F64:
    """How much longer `rank` worked than the median of the others, per used step."""
    self_ms = case.self_ms()
    position = case.position(rank)
    others = np.delete(self_ms, position, axis=0)
    return np.asarray(self_ms[position] - np.median(others, axis=0))


def _heavy(excess: F64) -> Bool | None:
    """The steps that stand out and hold nearly all of the excess; None if there are no such."""
    if len(excess) < 2 * _FEWEST:
        return None
    heavy = excess > _divide(excess)
    count = int(heavy.sum())
    if count < _FEWEST or count > _MOST_HEAVY * len(excess) + 1:
        return None
    light = excess[~heavy]
    spread = 1.4826 * float(np.median(np.abs(light - np.median(light))))
    stands_out = float(excess[heavy].min() - np.median(light)) > _CLEAR * spread
    holds = float(excess[heavy].sum()) >= _HOLDS * float(excess.sum())
    return heavy if stands_out and holds else None


def _divide(values: F64) -> float:
    """The cut into two groups with the least variance inside them (Otsu's threshold)."""
    ordered = np.sort(values)
    n = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    low = sums[:-1] / n
    high = (sums[-1] - sums[:-1]) / (len(ordered) - n)
    best = int(np.argmax(n * (len(ordered) - n) * (high - low) ** 2))
    return float((ordered[best] + ordered[best + 1]) / 2)


def _period(steps: I64) -> int | None:
    """k, where the gaps between these step numbers are multiples of k; None if irregular.

    Multiples, because a heavy step may have been left out for another reason.
    """
    gaps = np.diff(steps)
    every = int(np.median(gaps))
    if every < 2:
        return None
    multiples = np.maximum(np.rint(gaps / every), 1)
    off = np.abs(gaps - multiples * every)
    regular = float((off <= max(1.0, 0.1 * every)).mean())
    return every if regular >= _REGULAR else None


def _chance(count: int, every: int, num_ranks: int) -> float:
    """How probable it is that this many late steps all fall on one rank, and so regularly.

    Each further one falls on the first one's rank by 1 / ranks, and each further gap within one
    step of the first by about 3 / k.
    """
    return (1 / num_ranks) ** (count - 1) * min(1.0, 3 / every) ** max(count - 2, 0)


def _phase(case: Case, rank: int, heavy: Bool) -> str:
    """The phase that grows most from the light steps to the heavy ones."""
    phases = case.panel.phases_ns[case.position(rank)][case.used] / NS_PER_MS
    growth = phases[heavy].mean(axis=0) - phases[~heavy].mean(axis=0)
    return max(LOCAL_PHASES, key=lambda phase: float(growth[PHASES.index(phase)]))
