"""The wall clock's parts by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import pytest

from diag.record.schema import StepFlag
from diag.reports.account import account
from diag.reports.model import Wall
from diag.reports.panel import Panel
from diag.reports.steady import steady
from diag.reports.wall import UNKNOWN, Watched, wall
from helpers.panels import NS, alone, data_parallel, moved_clocks, with_flag

SECOND = 1000.0  # in ms
PARTS = ("startup_s", "warm_up_s", "steady_s", "checkpoint_s", "evaluation_s", "shutdown_s")
NODE: Mapping[int, Mapping[str, int]] = {0: {"node": 0}, 1: {"node": 0}}


def watched(panel: Panel, *, begin: float = -5, after: float = 3, **facts: object) -> Watched:
    """The command began `begin` s from the first step's start and ended `after` the last release."""
    clock = {
        "started_ns": int(panel.start_ns[0, 0] + begin * SECOND * NS),
        "ended_ns": int(panel.end_ns[0, -1] + after * SECOND * NS),
    }
    return Watched({**clock, **facts}, NODE, panel, steady(panel))


def parts(result: Wall) -> dict[str, float | None]:
    return {name: getattr(result, name) for name in PARTS}


def saving(*, rank: int = 0) -> Panel:
    """40 steps of 1 s; in steps 10 and 20 one rank saves for 4 s more while the other waits."""
    step: list[dict[str, float]] = [{"forward": SECOND}, {"forward": SECOND}]
    held = [dict(each) for each in step]
    held[rank]["host"] = 4 * SECOND
    work = [held if s in (10, 20) else step for s in range(40)]
    return with_flag(data_parallel(work), int(StepFlag.CHECKPOINT), [10, 20], rank)


def test_the_parts_of_a_clean_run() -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2] * 40)

    result = wall(watched(panel))

    assert parts(result) == {
        "startup_s": 5.0, "warm_up_s": 1.0, "steady_s": 39.0, "checkpoint_s": 0.0,
        "evaluation_s": 0.0, "shutdown_s": 3.0,
    }  # fmt: skip
    assert result.total_s == 48.0
    assert result.other_s == 0.0
    assert result.end_to_end_speedup is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_takes_what_it_adds_to_an_ordinary_step(rank: int) -> None:
    result = wall(watched(saving(rank=rank)))

    assert (result.checkpoint_s, result.steady_s) == (8.0, 39.0)
    assert result.checkpoint_waited_s == 8.0
    assert result.evaluation_waited_s == 0.0


def test_saving_together_makes_nobody_wait() -> None:
    busy = {"forward": SECOND, "host": 4 * SECOND}
    work = [[busy, busy] if s == 10 else [{"forward": SECOND}] * 2 for s in range(40)]
    panel = with_flag(data_parallel(work), int(StepFlag.CHECKPOINT), [10])

    result = wall(watched(panel))

    assert (result.checkpoint_s, result.checkpoint_waited_s) == (4.0, 0.0)


def test_an_evaluation_has_its_own_part() -> None:
    panel = saving()
    evaluated = replace(
        panel, flags=np.where(panel.flags > 0, int(StepFlag.EVALUATION), 0).astype(np.int64)
    )

    result = wall(watched(evaluated))

    assert (result.evaluation_s, result.checkpoint_s) == (8.0, 0.0)
    assert result.evaluation_waited_s == 8.0


def test_profiled_steps_are_other_time() -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2] * 40)

    result = wall(watched(with_flag(panel, int(StepFlag.PROFILED), [5, 6])))

    assert (result.other_s, result.steady_s) == (2.0, 37.0)


def test_the_parts_sum_to_the_total() -> None:
    panel = with_flag(saving(), int(StepFlag.PROFILED | StepFlag.EVALUATION), [30])

    result = wall(watched(panel))

    known = [part for part in (*parts(result).values(), result.other_s) if part is not None]
    assert len(known) == len(PARTS) + 1
    assert sum(known) == pytest.approx(result.total_s)


def test_without_the_launcher_s_clock_only_the_steps_are_known() -> None:
    panel = saving()

    result = wall(Watched({}, {}, panel, steady(panel)))

    assert result.startup_s is None
    assert result.total_s is None
    assert result.other_s is None
    assert (result.steady_s, result.checkpoint_s) == (39.0, 8.0)


def test_a_run_that_has_not_ended_is_told_up_to_its_last_step() -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2] * 40)

    result = wall(watched(panel, ended_ns=None))

    assert (result.shutdown_s, result.total_s) == (0.0, 45.0)


def test_the_timeline_is_that_of_a_rank_on_the_launcher_s_node() -> None:
    panel = moved_clocks(data_parallel([[{"forward": SECOND}] * 2] * 40), [10**15, 0])
    far = watched(panel)
    begin, end = int(panel.start_ns[1, 0] - 5e9), int(panel.end_ns[1, -1] + 3e9)
    ranks = {0: {"node": 1}, 1: {"node": 0}}

    result = wall(replace(far, ranks=ranks, facts={"started_ns": begin, "ended_ns": end}))

    assert (result.startup_s, result.shutdown_s, result.total_s) == (5.0, 3.0, 48.0)


def test_clocks_that_cannot_be_one_clock_are_not_compared() -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2] * 40)

    result = wall(watched(panel, begin=+9))

    assert result.startup_s is None
    assert result.other_s is None


@pytest.mark.parametrize("nonsense", ["soon", True, 1.5, 10**400, [], -(10**30)])
def test_a_fact_that_is_no_time_is_no_clock(nonsense: object) -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2] * 40)

    result = wall(watched(panel, started_ns=nonsense))

    assert (result.startup_s, result.total_s) == (None, None)
    assert result.steady_s == 39.0


def test_a_run_without_steps_has_a_total_at_most() -> None:
    panel = data_parallel([[{"forward": SECOND}] * 2])
    empty = replace(panel, index=panel.index[:0])

    result = wall(Watched({"started_ns": 0, "ended_ns": 7 * 10**9}, {}, empty, steady(panel)))

    assert result == replace(UNKNOWN, total_s=7.0)


def test_end_to_end_is_the_same_work_by_the_baseline_s_command() -> None:
    run = data_parallel([[{"forward": SECOND}] * 2] * 40)
    baseline = alone([{"forward": SECOND}] * 30)
    ours, theirs = watched(run), watched(baseline, begin=-4, after=1)

    result = wall(ours, theirs, account(run, baseline))

    # 40 steps of 16 samples are 80 of the baseline's: 4 + 1 (warm-up, a step) + 79 + 1 seconds.
    assert result.end_to_end_speedup == pytest.approx(85 / 48)


def test_end_to_end_charges_saving_to_both() -> None:
    run, baseline = saving(), alone([{"forward": SECOND}] * 30)
    ours, theirs = watched(run), watched(baseline, begin=-4, after=1)

    result = wall(ours, theirs, account(run, baseline, used=ours.steady.used))

    assert result.end_to_end_speedup == pytest.approx((85 + 8) / 56)


def test_end_to_end_is_unknown_without_samples() -> None:
    run, baseline = (
        data_parallel([[{"forward": SECOND}] * 2] * 40),
        alone([{"forward": SECOND}] * 30),
    )
    blind = replace(run, samples=np.full_like(run.samples, np.nan))

    result = wall(watched(blind), watched(baseline), account(blind, baseline))

    assert result.end_to_end_speedup is None


def test_every_field_of_the_contract_is_filled() -> None:
    run, baseline = saving(), alone([{"forward": SECOND}] * 30)
    result = wall(watched(run), watched(baseline), account(run, baseline))

    assert all(getattr(result, field.name) is not None for field in fields(Wall))
