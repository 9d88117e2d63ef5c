"""Where the wall clock went, in seconds: what the user's watch says, beside the identity.

The parts follow one rank's timeline, the lowest rank on the launcher's node, since only there
do the launcher's clock and the rank's agree. They sum to the total:

    startup     from the command to that rank's first step
    warm-up     the first steps, up to the steady state
    steady      ordinary steps, and of flagged ones as much as an ordinary step takes
    checkpoint  what steps that saved took beyond an ordinary step
    evaluation  likewise
    shutdown    from the last release to the end of the command: the last optimizer step, and
                whatever the script does after training (a final save among it)
    other       the rest: profiled or unsynchronized steps, steps that some rank lacks

`waited` is what the other ranks lost meanwhile: their blocked time in flagged steps beyond
what they block in an ordinary one, on average over all ranks but the busiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diag.reports.accounting import Accounting
from diag.reports.columns import release_to_release_ns
from diag.reports.model import Wall
from diag.reports.panel import EXPOSED, F64, Panel
from diag.reports.steady import Steady

_NS = 1e9
UNKNOWN = Wall(*(None,) * 11)


@dataclass(frozen=True)
class Watched:
    """A run and its clocks.

    Attributes:
        facts: run.json.
        ranks: rank.json by rank number.
    """

    facts: Mapping[str, Any]
    ranks: Mapping[int, Mapping[str, Any]]
    panel: Panel
    steady: Steady


def wall(
    run: Watched, baseline: Watched | None = None, accounting: Accounting | None = None
) -> Wall:
    """The run's wall clock; None where a clock is missing.

    The end-to-end speed-up needs the baseline and the accounting between the two.
    """
    own = _parts(run)
    if baseline is None or accounting is None:
        return own
    return replace(own, end_to_end_speedup=_end_to_end(run, own, baseline, accounting))


def _parts(run: Watched) -> Wall:
    panel = run.panel
    begin, end = _command(run)
    total = None if begin is None or end is None else (end - begin) / _NS
    if not panel.num_steps:
        return replace(UNKNOWN, total_s=total)
    seconds = release_to_release_ns(panel)[_reference(run)] / _NS
    ordinary = _ordinary(seconds, run.steady)
    warm_up = float(seconds[_where(run, "warm-up")].sum())
    saving, evaluating = _where(run, "checkpoint"), _where(run, "evaluation")
    flagged = saving | evaluating
    steady = float(seconds[run.steady.used].sum() + np.minimum(seconds, ordinary)[flagged].sum())
    beyond = np.maximum(seconds - ordinary, 0)
    checkpoint, evaluation = float(beyond[saving].sum()), float(beyond[evaluating].sum())
    startup, shutdown = _ends(run, begin, end)
    parts = [startup, warm_up, steady, checkpoint, evaluation, shutdown]
    known = [part for part in parts if part is not None]
    other = None if total is None or len(known) < len(parts) else total - sum(known)
    waited = _waited(run)
    return Wall(
        startup_s=startup,
        warm_up_s=warm_up,
        steady_s=steady,
        checkpoint_s=checkpoint,
        evaluation_s=evaluation,
        shutdown_s=shutdown,
        other_s=other,
        total_s=total,
        checkpoint_waited_s=float(waited[saving].sum()),
        evaluation_waited_s=float(waited[evaluating].sum()),
        end_to_end_speedup=None,
    )


def _reference(run: Watched) -> int:
    """Position of the lowest rank on the launcher's node; of the lowest rank if none is known."""
    nodes = [run.ranks.get(rank, {}).get("node", 0) for rank in run.panel.ranks]
    return nodes.index(0) if 0 in nodes else 0


def _command(run: Watched) -> tuple[int | None, int | None]:
    """When the command began and ended, on its own clock; the end as far as it is recorded."""
    begin = _time(run.facts, "started_ns")
    end = _time(run.facts, "ended_ns")
    if end is None and run.panel.num_steps:
        end = int(run.panel.end_ns[_reference(run), -1])
    ordered = begin is None or end is None or begin <= end
    return (begin, end) if ordered else (None, None)


def _ends(run: Watched, begin: int | None, end: int | None) -> tuple[float | None, float | None]:
    """Startup and shutdown; None where the clocks cannot be one clock."""
    reference = _reference(run)
    first = int(run.panel.start_ns[reference, 0])
    last = int(run.panel.end_ns[reference, -1])
    startup = None if begin is None or begin > first else (first - begin) / _NS
    shutdown = None if end is None or end < last else (end - last) / _NS
    return startup, shutdown


def _time(facts: Mapping[str, Any], name: str) -> int | None:
    value = facts.get(name)
    is_time = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value if is_time else None


def _where(run: Watched, reason: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([r == reason for r in run.steady.reasons], np.bool_)


def _ordinary(seconds: F64, steady: Steady) -> float:
    """The median of the steps that count; 0 where none does, so that flagged steps count whole."""
    return float(np.median(seconds[steady.used])) if steady.used.any() else 0.0


def _waited(run: Watched) -> F64:
    """Seconds lost by the other ranks in each step, beyond ordinary blocking. [S]"""
    panel = run.panel
    blocked = panel.phases_ns[:, :, EXPOSED] / _NS
    if panel.num_ranks == 1:
        return np.zeros(panel.num_steps)
    usual = np.zeros((panel.num_ranks, 1))
    if run.steady.used.any():
        usual = np.median(blocked[:, run.steady.used], axis=1, keepdims=True)
    beyond = np.maximum(blocked - usual, 0)
    busiest = panel.self_ns.argmax(axis=0)
    beyond[busiest, np.arange(panel.num_steps)] = 0
    return np.asarray(beyond.sum(axis=0) / (panel.num_ranks - 1))


def _end_to_end(run: Watched, own: Wall, baseline: Watched, accounting: Accounting) -> float | None:
    """How many times sooner the command ended than the baseline's ranks would have done its work.

    Their command is put together from what was recorded: startup, warm-up and shutdown as they
    were, the remaining work at their steady pace, and the same time for saving and evaluating.
    """
    theirs = _parts(baseline)
    step, work = accounting.baseline_step_ms, accounting.baseline_samples_per_step
    known = (theirs.startup_s, theirs.warm_up_s, theirs.shutdown_s)
    if own.total_s is None or not own.total_s or accounting.samples_per_step is None:
        return None
    if step is None or not work or any(part is None for part in known):
        return None
    steps = run.panel.num_steps * accounting.samples_per_step / work
    remaining = max(steps - baseline.steady.excluded.get("warm-up", 0), 0.0)
    fixed = sum(part for part in known if part is not None)
    flagged = (own.checkpoint_s or 0.0) + (own.evaluation_s or 0.0)
    return (fixed + remaining * step / 1e3 + flagged) / own.total_s
