"""Where steps are cut, and that every instant has exactly one phase."""

from __future__ import annotations

import threading

from diag.probes.timeline import Timeline, phase_durations
from diag.probes.tracker import ABANDONED_AFTER, DATA
from diag.record.schema import StepFlag
from helpers.fakes import Optimizer, Rank


def one_step(rank: Rank) -> None:
    rank.during(DATA, 5)
    rank.idle(1)
    rank.forward(20)
    rank.idle(2)
    rank.backward(40, exposed=7)
    rank.idle(3)
    rank.step(11)


def test_a_step_runs_from_release_to_release_and_its_phases_sum_to_it() -> None:
    rank = Rank().wrapped()
    for _ in range(3):
        one_step(rank)
    assert [r["index"] for r in rank.rows.steps] == [0, 1]
    # The host's 3 ns after the backward and the optimizer's 11 belong to the next step.
    expected = {"data": 5, "forward": 20, "backward": 40, "optimizer": 11}
    assert rank.phases() == expected | {"exposed_comm": 7, "host": 1 + 2 + 3}
    first, second = rank.rows.steps
    assert first["end_ns"] == second["start_ns"]
    assert second["end_ns"] - second["start_ns"] == sum(rank.phases().values())
    assert second["micro_batches"] == 1
    assert second["flags"] == 0


def test_the_wait_at_the_end_of_a_ddp_backward_is_a_row_of_that_step() -> None:
    rank = Rank().wrapped()
    for _ in range(2):
        one_step(rank)
    row = rank.rows.collectives[-1]
    assert (row["step"], row["group"], row["source"]) == (0, "ddp:0", "ddp")
    assert row["end_ns"] - row["wait_ns"] == 7
    assert row["end_ns"] == rank.rows.steps[0]["end_ns"]
    assert rank.tracker.traffic.groups["ddp:0"] == [0, 1]


def test_accumulation_is_one_step_cut_at_its_last_backward() -> None:
    rank = Rank().wrapped()
    for _ in range(3):
        for micro in range(4):
            rank.ddp.require_forward_param_sync = micro == 3
            rank.forward(10)
            rank.backward(20, exposed=5 if micro == 3 else None)
        rank.step(1)
    assert rank.phases() == {"forward": 40, "backward": 80, "exposed_comm": 5, "optimizer": 1}
    assert rank.rows.steps[-1]["micro_batches"] == 4


def test_gradients_reduced_by_hand_cut_at_the_release_of_the_last_reduction() -> None:
    rank = Rank()
    for _ in range(3):
        rank.forward(10)
        rank.backward(20)
        rank.wait(6)
        rank.wait(4)
        rank.step(1)
    row = rank.rows.steps[-1]
    assert rank.phases() == {"forward": 10, "backward": 20, "exposed_comm": 10, "optimizer": 1}
    assert rank.rows.collectives[-1]["end_ns"] == row["end_ns"]
    assert row["flags"] == 0
    assert rank.tracker.gradient_groups == {2}


def test_a_gradient_norm_after_a_synchronizing_backward_does_not_move_the_cut() -> None:
    rank = Rank().wrapped()
    for _ in range(3):
        rank.backward(20, exposed=5)
        rank.wait(9)
        rank.step(1)
    last = rank.rows.steps[-1]
    # The norm's wait follows the cut: it is the first thing of the next step.
    assert rank.rows.collectives[-1]["source"] == "ddp"
    norm = rank.rows.collectives[-2]
    assert norm["wait_ns"] == last["start_ns"]
    assert rank.phases() == {"backward": 20, "exposed_comm": 14, "optimizer": 1}


def test_collectives_inside_a_backward_synchronize_it() -> None:
    rank = Rank()
    for _ in range(3):
        depth = rank.tracker.begin_backward()
        assert depth is not None
        rank.idle(8)
        rank.wait(3, "reduce_scatter_single")
        rank.idle(4)
        rank.tracker.end_backward(depth)
        rank.wait(50)  # a logged loss: not what releases the step
        rank.step(1)
    assert rank.phases() == {"backward": 12, "exposed_comm": 53, "optimizer": 1}
    assert rank.rows.steps[-1]["flags"] == 0


def test_a_step_nobody_synchronized_says_so() -> None:
    rank = Rank(world=2)
    for _ in range(3):
        rank.backward(5)
        rank.step(1)
    assert rank.rows.steps[-1]["flags"] == StepFlag.UNSYNCED
    alone = Rank(world=1)
    for _ in range(3):
        alone.backward(5)
        alone.step(1)
    assert alone.rows.steps[-1]["flags"] == 0


def test_only_the_first_stepping_optimizer_cuts() -> None:
    rank = Rank().wrapped()
    other = Optimizer()
    for _ in range(3):
        rank.backward(10, exposed=1)  # the discriminator
        rank.step(2)
        rank.backward(30, exposed=1)  # the generator
        rank.step(3, other)
    assert len(rank.rows.steps) == 2
    assert rank.phases() == {"backward": 40, "exposed_comm": 2, "optimizer": 5}
    assert rank.rows.steps[-1]["micro_batches"] == 2


def test_an_optimizer_out_of_use_hands_over() -> None:
    rank = Rank().wrapped()
    rank.backward(1, exposed=1)
    rank.step(1)
    second_stage = Optimizer()
    for _ in range(ABANDONED_AFTER + 5):
        rank.backward(1, exposed=1)
        rank.step(1, second_stage)
    assert len(rank.rows.steps) == 5


def test_a_dead_leader_is_replaced_at_once() -> None:
    rank = Rank().wrapped()
    rank.backward(1, exposed=1)
    rank.step(1)
    rank.optimizer = Optimizer()
    for _ in range(2):
        rank.backward(1, exposed=1)
        rank.step(1)
    assert len(rank.rows.steps) == 2


def test_blocking_inside_forward_is_exposed_and_leaves_the_rest_forward() -> None:
    rank = Rank().wrapped()
    for _ in range(3):
        depth = rank.tracker.begin_forward()
        assert depth is not None
        rank.wait(4)
        rank.idle(6)
        rank.tracker.end(depth)
        rank.backward(10, exposed=1)
        rank.step(1)
    assert rank.phases() == {"forward": 6, "backward": 10, "exposed_comm": 5, "optimizer": 1}


def test_nested_roots_and_waits_keep_the_outer_label() -> None:
    rank = Rank().wrapped()
    depth = rank.tracker.begin_backward()
    assert depth is not None
    assert rank.tracker.begin_forward() is None  # recomputed activations
    waiting = rank.tracker.begin_wait()
    assert waiting is not None
    assert rank.tracker.begin_wait() is None
    rank.tracker.end_wait(waiting, "python", None)
    rank.tracker.end_backward(depth)


def test_other_threads_are_not_marked() -> None:
    rank = Rank()
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(rank.tracker.begin_wait()))
    thread.start()
    thread.join()
    assert seen == [None]


def test_an_optimizer_that_raised_leaves_no_phase_behind() -> None:
    rank = Rank().wrapped()
    one_step(rank)
    rank.backward(5, exposed=1)
    rank.tracker.begin_step(rank.optimizer)  # raises in the middle: no end
    rank.idle(2)
    for _ in range(3):
        one_step(rank)
    assert rank.phases()["host"] == 6
    assert rank.phases()["optimizer"] == 11


def test_durations_of_a_segment_sum_to_its_length() -> None:
    assert phase_durations([10, 13, 13, 20], [6, 2, 6, 6]) == [0, 0, 0, 0, 0, 0, 10]
    assert sum(phase_durations([0, 5, 9, 30], [1, 5, 3, 6])) == 30


def test_marks_stop_at_their_limit_but_a_cut_is_always_marked() -> None:
    ticks = iter(range(10**6))

    class Ticks:
        now = staticmethod(lambda: next(ticks))
        arm = staticmethod(lambda: None)

    timeline = Timeline(Ticks())  # type: ignore[arg-type]
    for _ in range(Timeline.MAX_MARKS):
        timeline.enter(2)
        timeline.leave(1)
    assert len(timeline.marks) == Timeline.MAX_MARKS
    end = timeline.leave(1, always=True)
    segment = timeline.cut(timeline.position)
    assert segment[-1][0] == end
    assert timeline.marks == segment[-1:]
