"""When a rank is slow, when ranks take turns, and when it is only noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from diag.reports.columns import Columns
from diag.reports.significance import (
    expected_maximum,
    relative_spread,
    rotation,
    slow_ranks,
)
from diag.reports.stats import Resamples, pool, resample

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def drawn_from(own: np.ndarray, phase: int = 2) -> Resamples:
    """Ranks that do one thing only. own: [S, R] ms."""
    local = np.zeros((*own.shape, 6))
    local[:, :, phase] = own
    top, zero = own.max(axis=1), np.zeros(len(own))
    drawn = resample(pool([Columns(local, top, zero, top, top, zero + 8.0)]))
    assert drawn is not None
    return drawn


def jitter(drawn: Resamples) -> float:
    centre = drawn.side.centre
    return float(centre.self_max - centre.self_time.max())


def normal(steps: int, ranks: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return 100 + scale * np.random.default_rng(seed).standard_normal((steps, ranks))


class TestSlowRanks:
    @pytest.mark.parametrize("ranks", [2, 3, 8, 64])
    def test_a_rank_slower_than_noise_is_found(self, ranks: int) -> None:
        own = normal(150, ranks, 1)
        own[:, 1] += 1.0  # one standard deviation in each step

        found = slow_ranks(drawn_from(own))

        assert found.positions == (1,)
        assert found.significant

    @pytest.mark.parametrize("ranks", [2, 3, 8])
    def test_equal_ranks_are_not(self, ranks: int) -> None:
        found = [slow_ranks(drawn_from(normal(100, ranks, s))).significant for s in range(60)]

        assert sum(found) <= 3

    def test_a_noisier_rank_is_not_slow(self) -> None:
        false = 0
        for seed in range(60):
            own = normal(100, 8, seed)
            own[:, 0] = 100 + 12 * (own[:, 0] - 100)
            false += slow_ranks(drawn_from(own)).significant

        assert false <= 3

    def test_slowly_drifting_noise_is_not_slow(self) -> None:
        false = 0
        for seed in range(40):
            noise = normal(200, 4, seed) - 100
            for step in range(1, 200):
                noise[step] = 0.9 * noise[step - 1] + 0.44 * noise[step]
            false += slow_ranks(drawn_from(100 + noise)).significant

        assert false <= 3

    def test_steps_of_one_length_are_judged_by_their_difference(self) -> None:
        own = np.full((20, 2), 100.0)
        assert not slow_ranks(drawn_from(own)).significant

        own[:, 1] = 101.0
        assert slow_ranks(drawn_from(own)).positions == (1,)

    def test_worst_first(self) -> None:
        own = normal(100, 6, 3)
        own[:, [2, 4]] += [5.0, 9.0]

        assert slow_ranks(drawn_from(own)).positions == (4, 2)


class TestExpectedMaximum:
    @pytest.mark.parametrize(
        ("ranks", "of_normal"), [(2, 0.5642), (3, 0.8463), (4, 1.0294), (8, 1.4236), (64, 2.3437)]
    )
    def test_small_equal_spreads_are_normal_order_statistics(
        self, ranks: int, of_normal: float
    ) -> None:
        expected = expected_maximum(np.full(ranks, 100.0), np.full(ranks, 0.001))

        assert expected == pytest.approx(100 + 0.1 * of_normal, rel=1e-5)

    def test_lognormal_draws(self) -> None:
        rng = np.random.default_rng(0)
        mean, spread = np.array([90.0, 100.0, 120.0]), np.array([0.3, 0.1, 0.2])
        draws = mean * np.exp(spread * rng.standard_normal((200_000, 3)) - spread**2 / 2)

        assert expected_maximum(mean, spread) == pytest.approx(draws.max(axis=1).mean(), rel=2e-3)

    def test_a_rank_far_slower_than_the_rest_is_the_maximum(self) -> None:
        assert expected_maximum(np.array([100.0, 200.0]), np.full(2, 0.01)) == pytest.approx(200)

    def test_without_spread_it_is_the_slowest_mean(self) -> None:
        assert expected_maximum(np.array([100.0, 101.0]), np.zeros(2)) == pytest.approx(101)


class TestSpread:
    @pytest.mark.parametrize("ranks", [2, 3, 5, 16])
    def test_of_noise_alone(self, ranks: int) -> None:
        own = np.exp(0.05 * np.random.default_rng(1).standard_normal((4000, ranks)))

        assert relative_spread(own) == pytest.approx(np.full(ranks, 0.05), rel=0.15)

    def test_what_the_ranks_share_is_no_spread(self) -> None:
        rng = np.random.default_rng(2)
        shared = 0.3 * rng.standard_normal((4000, 1))
        own = np.exp(0.05 * rng.standard_normal((4000, 4)) + shared)

        assert relative_spread(own) == pytest.approx(np.full(4, 0.05), rel=0.15)

    @pytest.mark.parametrize("ranks", [2, 3, 4, 8])
    def test_lateness_is_no_spread(self, ranks: int) -> None:
        rng = np.random.default_rng(3)
        own = 100 + rng.standard_normal((2000, ranks))
        own[np.arange(2000), rng.integers(ranks, size=2000)] += 40

        assert relative_spread(own).max() < 0.02  # of which 0.01 is noise


class TestRotation:
    @pytest.mark.parametrize("ranks", [2, 3, 4, 8])
    @pytest.mark.parametrize("late", [5.0, 30.0])
    def test_one_late_rank_a_step(self, ranks: int, late: float) -> None:
        rng = np.random.default_rng(ranks)
        own = 100 + 0.5 * rng.standard_normal((150, ranks))
        own[np.arange(150), rng.integers(ranks, size=150)] += late
        drawn = drawn_from(own)
        found = rotation(drawn)

        assert found.significant
        excess = jitter(drawn) - found.expected_ms
        rotates = late * (ranks - 1) / ranks
        assert 0.75 * rotates - 0.5 < excess < 1.05 * rotates  # up to a noise's worth is not seen

    @pytest.mark.parametrize(
        "noise",
        [
            lambda g, s: 5 * g.standard_normal(s),
            lambda g, s: g.laplace(0, 3, s),
            lambda g, s: 2 * g.standard_t(4, s),
            lambda g, s: 100 * (np.exp(0.2 * g.standard_normal(s)) - 1),
        ],
        ids=["normal", "laplace", "student", "lognormal"],
    )
    @pytest.mark.parametrize("ranks", [2, 4, 8])
    def test_noise_of_any_usual_shape_is_no_rotation(self, noise: Noise, ranks: int) -> None:
        alarms = 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            drawn = drawn_from(np.maximum(100 + noise(rng, (150, ranks)), 1.0))
            found = rotation(drawn)
            alarms += found.significant and jitter(drawn) - found.expected_ms > 1.0

        assert alarms <= 1

    def test_rare_long_pauses_are_rotation(self) -> None:
        rng = np.random.default_rng(4)
        own = 100 + rng.standard_normal((300, 4)) + 60 * (rng.random((300, 4)) < 0.03)

        assert rotation(drawn_from(own)).significant

    def test_behind_a_straggler_nothing_rotates(self) -> None:
        own = normal(100, 4, 5)
        own[:, 0] += 50
        found = rotation(drawn_from(own))

        assert not found.significant
        assert found.expected_ms == pytest.approx(0.0, abs=1e-6)
