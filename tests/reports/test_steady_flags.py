"""Flags that leave a step out, its neighbour too, or nothing."""

from __future__ import annotations

import numpy as np

from diag.record.schema import PHASES, StepFlag
from diag.reports.panel import Panel
from diag.reports.steady import steady

STEPS = 40


def panel(flags: dict[int, StepFlag]) -> Panel:
    """Two ranks, equal steps; rank 1 carries the flags."""
    shape = (2, STEPS)
    start = np.broadcast_to(np.arange(STEPS) * 1000, shape).astype(np.int64)
    phases = np.zeros((*shape, len(PHASES)), np.int64)
    phases[:, :, PHASES.index("forward")] = 1000
    carried = np.zeros(shape, np.int64)
    for step, flag in flags.items():
        carried[1, step] = int(flag)
    return Panel(
        ranks=(0, 1),
        index=np.arange(STEPS),
        start_ns=start,
        end_ns=start + 1000,
        phases_ns=phases,
        samples=np.full(shape, 8.0),
        tokens=np.full(shape, np.nan),
        flags=carried,
        probe_ns=np.zeros(shape, np.int64),
    )


def test_one_ranks_checkpoint_leaves_the_step_out_for_all() -> None:
    chosen = steady(panel({20: StepFlag.CHECKPOINT}))
    assert chosen.excluded == {"warm-up": 1, "checkpoint": 1}
    assert chosen.reasons[20] == "checkpoint"
    assert chosen.used[21]


def test_the_step_after_an_unsynchronized_one_begins_ragged_and_is_left_out() -> None:
    chosen = steady(panel({20: StepFlag.UNSYNCED}))
    assert [s for s in range(STEPS) if chosen.reasons[s] == "unsynced"] == [20, 21]


def test_what_most_steps_do_is_part_of_the_step() -> None:
    habit = dict.fromkeys(range(STEPS // 2 + 1), StepFlag.EVALUATION)
    assert steady(panel(habit)).excluded == {"warm-up": 1}
    rare = dict.fromkeys(range(1, STEPS // 2), StepFlag.EVALUATION)
    assert steady(panel(rare)).excluded == {"warm-up": 1, "evaluation": STEPS // 2 - 1}


def test_a_compilation_in_most_steps_is_still_no_steady_state() -> None:
    warm = dict.fromkeys(range(30), StepFlag.WARM_UP)
    assert steady(panel(warm)).excluded == {"warm-up": 30}
