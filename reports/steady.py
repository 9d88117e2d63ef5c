"""Which steps count: the steady state, with a reason for every step left out.

**Warm-up** ends where MSER-5 says (White 1997; White, Cobb and Spratt 2000): of the means of
consecutive fives, drop as many at the front as minimizes the standard error of the rest's mean,
at most half of them. The series is the step time of the slowest rank in the steps that carry
no flag. Two guards: values are first clipped to a few robust spreads around the median of the
series' second half, so that a single slow step or a periodic one draws no cut behind itself;
and what is dropped must differ from the rest by more than 1% and than chance, correlated noise
allowed for, so that a clean or a wavy run keeps its steps. Clipping hides how slow a single
step was, so warm-up also lasts until the last of the first few steps that is slower than
anything in the second half (compilation). The first step is always left out: it has no release
before it.

**Flags** are set at capture; one rank's flag leaves the step out for all, since they wait for
it. The step after a flagged one stays. A step runs from release to release, so what follows an
optimizer step (saving, evaluating) lies inside the next step on every rank, and the others wait
for it at that same step's release: nothing is left to leak. (Loaders may have refilled their
queues meanwhile, which flatters the next few steps of a run that waits for its data.) Only an
unsynchronized step spoils the next one too: it ends in no release, so the next begins ragged.

**What every step does is part of the step.** A run that evaluates, samples or saves in most of
its steps (a teacher in eval mode, a policy that acts) is not interrupted by it: a flag that more
than half of the steps carry leaves nothing out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diag.record.schema import StepFlag
from diag.reports.panel import F64, Bool, Panel

WARM_UP = "warm-up"
# In the order in which a step with several reasons is counted.
_FLAGGED: tuple[tuple[StepFlag, str], ...] = (
    (StepFlag.WARM_UP, WARM_UP),
    (StepFlag.PROFILED, "profiled"),
    (StepFlag.CHECKPOINT, "checkpoint"),
    (StepFlag.EVALUATION, "evaluation"),
    (StepFlag.UNSYNCED, "unsynced"),
)
# Flags for what interrupts a training, unless the training consists of it.
_HABITS = (StepFlag.CHECKPOINT, StepFlag.EVALUATION)
_BATCH = 5
_CLIP = 4.0  # spreads; ordinary steps lie within
_MATERIAL = 0.01
_CHANCE = 3.0  # standard errors


@dataclass(frozen=True)
class Steady:
    """Attributes:
    used: [S] mask of the steps that count.
    excluded: reason to number of steps, every step once, only reasons that occur.
    reasons: [S] per step, None where used.
    """

    used: Bool
    excluded: dict[str, int]
    reasons: tuple[str | None, ...]


def steady(panel: Panel) -> Steady:
    """Choose the steps that count. A panel without steps has none."""
    reasons: list[str | None] = [None] * panel.num_steps
    for flag, reason in reversed(_FLAGGED):
        for step in np.flatnonzero(_spoiled(panel, flag)):
            reasons[step] = reason
    unflagged = np.flatnonzero([reason is None for reason in reasons])
    slowest = (panel.end_ns - panel.start_ns).max(axis=0, initial=0)[unflagged]
    warm = warm_up_length(slowest.astype(np.float64))
    for step in unflagged[:warm]:
        reasons[step] = WARM_UP
    if panel.num_steps and reasons[0] is None:
        reasons[0] = WARM_UP
    used = np.array([reason is None for reason in reasons], np.bool_)
    names = dict.fromkeys(name for _, name in _FLAGGED)
    counts = {name: reasons.count(name) for name in names}
    return Steady(used, {name: n for name, n in counts.items() if n}, tuple(reasons))


def _spoiled(panel: Panel, flag: StepFlag) -> Bool:
    """The steps that `flag` leaves out. [S]"""
    flagged = panel.flagged(flag)
    if flag in _HABITS and flagged.sum() > len(flagged) / 2:
        return np.zeros_like(flagged)
    if flag is StepFlag.UNSYNCED:
        flagged = flagged | np.concatenate(([False], flagged[:-1]))
    return flagged


def warm_up_length(times: F64) -> int:
    """How many of the first steps are warm-up. times: [S], any unit, without flagged steps."""
    if len(times) < 4:
        return 0
    later = times[len(times) // 2 :]
    middle = float(np.median(later))
    spread = 1.4826 * float(np.median(np.abs(later - middle)))
    reach = max(_CLIP * spread, 2 * _MATERIAL * middle)
    bursts = _bursts(times, max(float(later.max()), middle + 2 * reach))
    return max(bursts, _changes(np.clip(times, middle - reach, middle + reach)))


def _bursts(times: F64, bar: float) -> int:
    """Up to the last of the first few steps that is slower than anything later, by far."""
    few = min(max(2 * _BATCH, len(times) // 10), len(times) // 2)
    slow = np.flatnonzero(times[:few] > bar)
    return int(slow[-1]) + 1 if len(slow) else 0


def _changes(calm: F64) -> int:
    """MSER-5's cut, if what it drops is unlike the rest."""
    batches = calm[: len(calm) // _BATCH * _BATCH].reshape(-1, _BATCH).mean(axis=1)
    cut = _mser(batches)
    return cut * _BATCH if cut and _differs(batches[:cut], batches[cut:]) else 0


def _mser(batches: F64) -> int:
    """The cut that minimizes the standard error of what follows it; the first of equals."""
    n = len(batches)
    if n < 2:
        return 0
    errors = np.array([batches[cut:].var() / (n - cut) for cut in range(n // 2 + 1)])
    return int(np.argmax(errors <= errors.min() * (1 + 1e-9)))


def _differs(front: F64, rest: F64) -> bool:
    """Whether the front is unlike the rest by more than chance and than what matters."""
    gap = abs(float(front.mean()) - float(rest.mean()))
    noise = _CHANCE * _standard_error(rest) * math.sqrt(1 + len(rest) / len(front))
    return gap > max(noise, _MATERIAL * float(rest.mean()))


def _standard_error(batches: F64) -> float:
    """Of their mean, for batches correlated from one to the next."""
    apart = batches - batches.mean()
    power = float(apart @ apart)
    lag_one = float(apart[1:] @ apart[:-1]) / power if power > 0 else 0.0
    correlation = min(max(lag_one, 0.0), 0.9)
    return float(batches.std()) * math.sqrt((1 + correlation) / (1 - correlation) / len(batches))
