"""Which steps count, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from diag.record.schema import StepFlag
from diag.reports.panel import Panel
from diag.reports.steady import steady, warm_up_length
from helpers.panels import alone, data_parallel, with_flag


def noisy(steps: int, spread: float, seed: int = 0) -> np.ndarray:
    """Step times around 100, in ms."""
    return 100 + spread * np.random.default_rng(seed).standard_normal(steps)


def run_of(times: Sequence[float] | np.ndarray) -> Panel:
    return alone([{"forward": float(ms)} for ms in times])


class TestWarmUp:
    @pytest.mark.parametrize("steps", [1, 3, 9, 10, 50, 1000])
    def test_a_constant_series_has_none(self, steps: int) -> None:
        assert warm_up_length(np.full(steps, 100.0)) == 0

    def test_slow_first_steps(self) -> None:
        times = noisy(100, 1.0)
        times[:12] *= 2

        assert 12 <= warm_up_length(times) <= 20

    def test_fast_first_steps_too(self) -> None:
        # A full queue of loaded batches flatters the start of a run that waits for its data.
        times = noisy(100, 1.0)
        times[:15] *= 0.7

        assert 15 <= warm_up_length(times) <= 20

    def test_a_slow_decay(self) -> None:
        times = noisy(200, 1.0) * (1 + 0.8 * np.exp(-np.arange(200) / 8))

        assert 20 <= warm_up_length(times) <= 60  # at 20 it is still 7% slow, at 40 half a percent

    def test_two_compilations(self) -> None:
        times = noisy(60, 2.0)
        times[0], times[4] = 20_000, 9_000

        assert warm_up_length(times) == 5

    def test_a_single_slow_step_later_is_no_warm_up(self) -> None:
        times = noisy(200, 1.0)
        times[60] = 3_000

        assert warm_up_length(times) == 0

    @pytest.mark.parametrize("every", [2, 5, 10, 50])
    def test_periodic_slow_steps_are_no_warm_up(self, every: int) -> None:
        times = noisy(300, 1.0)
        times[every - 1 :: every] += 80

        assert warm_up_length(times) == 0

    def test_clean_noise_seldom_loses_steps(self) -> None:
        lengths = [warm_up_length(noisy(150, 3.0, seed)) for seed in range(100)]

        assert sum(length > 0 for length in lengths) <= 5

    def test_wavy_noise_seldom_loses_steps(self) -> None:
        cut = 0
        for seed in range(100):
            wave = noisy(200, 3.0, seed) - 100
            for step in range(1, 200):
                wave[step] = 0.8 * wave[step - 1] + 0.6 * wave[step]
            cut += warm_up_length(100 + wave) > 0

        assert cut <= 10

    def test_what_comes_again_is_no_warm_up(self) -> None:
        # Every 60 steps, 20 are slower: so are the first.
        times = noisy(240, 0.5)
        times[np.arange(240) % 60 < 20] += 10

        assert warm_up_length(times) == 0

    def test_at_most_half_is_dropped(self) -> None:
        assert warm_up_length(np.linspace(300, 100, 60)) <= 30

    def test_less_than_a_percent_is_not_worth_a_step(self) -> None:
        times = np.full(100, 100.0)
        times[:20] = 100.5

        assert warm_up_length(times) == 0


class TestReasons:
    def test_the_first_step_is_always_left_out(self) -> None:
        chosen = steady(run_of(np.full(30, 100.0)))

        assert chosen.used.tolist() == [False] + [True] * 29
        assert chosen.excluded == {"warm-up": 1}

    def test_every_flag_has_its_reason_and_counts_once(self) -> None:
        panel = run_of(np.full(30, 100.0))
        for flag, step in (
            (StepFlag.WARM_UP, 7),
            (StepFlag.PROFILED, 9),
            (StepFlag.CHECKPOINT, 11),
            (StepFlag.EVALUATION, 13),
            (StepFlag.CHECKPOINT | StepFlag.EVALUATION, 15),
        ):
            panel = with_flag(panel, int(flag), [step])

        chosen = steady(panel)

        assert chosen.excluded == {"warm-up": 2, "profiled": 1, "checkpoint": 2, "evaluation": 1}
        assert [chosen.reasons[s] for s in (0, 7, 9, 11, 13, 15)] == [
            "warm-up", "warm-up", "profiled", "checkpoint", "evaluation", "checkpoint",
        ]  # fmt: skip
        assert sum(chosen.excluded.values()) + chosen.used.sum() == 30

    def test_a_skipped_update_is_a_step(self) -> None:
        panel = with_flag(run_of(np.full(30, 100.0)), int(StepFlag.SKIPPED), [9])

        assert steady(panel).used[9]

    def test_one_rank_s_flag_is_everyone_s(self) -> None:
        panel = data_parallel([[{"forward": 10.0}, {"forward": 10.0}]] * 20)

        chosen = steady(with_flag(panel, int(StepFlag.CHECKPOINT), [12], rank=1))

        assert chosen.reasons[12] == "checkpoint"

    def test_flagged_steps_do_not_draw_the_change_point(self) -> None:
        times = noisy(60, 1.0)
        times[3::4] = 700
        panel = with_flag(run_of(times), int(StepFlag.CHECKPOINT), range(3, 60, 4))

        assert steady(panel).excluded == {"warm-up": 1, "checkpoint": 15}

    def test_the_slowest_rank_decides_when_a_run_is_warm(self) -> None:
        work = [[{"forward": 10.0}, {"forward": 40.0 if s < 10 else 10.0}] for s in range(60)]

        assert steady(data_parallel(work)).excluded == {"warm-up": 10}

    @pytest.mark.parametrize("steps", [1, 2])
    def test_a_run_of_a_step_or_two(self, steps: int) -> None:
        chosen = steady(run_of(np.full(steps, 100.0)))

        assert chosen.used.tolist() == [False, True][:steps]

    def test_no_steps(self) -> None:
        panel = run_of([100.0])
        empty = replace(
            panel,
            index=panel.index[:0],
            start_ns=panel.start_ns[:, :0],
            end_ns=panel.end_ns[:, :0],
            phases_ns=panel.phases_ns[:, :0],
            samples=panel.samples[:, :0],
            tokens=panel.tokens[:, :0],
            flags=panel.flags[:, :0],
            probe_ns=panel.probe_ns[:, :0],
        )

        chosen = steady(empty)

        assert chosen.used.tolist() == []
        assert chosen.excluded == {}
