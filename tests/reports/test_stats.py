"""The parts of resampling, each against what is known of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diag.reports.columns import Columns, columns
from diag.reports.stats import (
    MIN_STEPS,
    autocovariance,
    block_length,
    block_steps,
    fixed_b,
    pool,
    prewhitening,
    resample,
    resampling_weights,
)
from helpers.panels import data_parallel
from helpers.synthetic import draw_world, simulate


def autoregressive(n: int, rho: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + np.sqrt(1 - rho**2) * values[i]
    return values


def series(values: np.ndarray) -> Columns:
    """One rank whose forward takes 100 ms + values."""
    run = data_parallel([[{"forward": float(100 + v)}] for v in values])
    return columns(run, np.ones(len(values), np.bool_), run.samples.sum(axis=0))[0]


def test_autocovariance_is_the_textbook_s() -> None:
    x = np.array([1.0, 4.0, 2.0, 9.0, 3.0])
    apart = x - x.mean()
    expected = [float((apart[k:] * apart[: 5 - k]).sum()) / 5 for k in range(5)]

    np.testing.assert_allclose(autocovariance(x[:, None]), expected)


def test_autocovariance_averages_over_columns() -> None:
    one, two = autoregressive(40, 0.5, 1), autoregressive(40, 0.0, 2)
    both = autocovariance(np.stack([one, two], axis=1))

    np.testing.assert_allclose(
        both, (autocovariance(one[:, None]) + autocovariance(two[:, None])) / 2
    )


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_block_length_follows_the_theory_of_an_autoregressive_series(rho: float) -> None:
    # Known covariance instead of an estimate: (1.5 (2 rho / (1 - rho²))² n)^(1/3).
    n = 4000
    covariance = rho ** np.arange(n)

    expected = (1.5 * (2 * rho / (1 - rho**2)) ** 2 * n) ** (1 / 3)
    assert block_length(covariance) == pytest.approx(expected, rel=0.12)


def test_blocks_of_noise_are_short_and_of_correlated_noise_longer() -> None:
    white = np.mean(
        [block_length(autocovariance(autoregressive(300, 0.0, s)[:, None])) for s in range(20)]
    )
    red = np.mean(
        [block_length(autocovariance(autoregressive(300, 0.8, s)[:, None])) for s in range(20)]
    )

    assert white < 4
    assert red > 12


def test_a_constant_series_has_blocks_of_one() -> None:
    assert block_length(autocovariance(np.full((50, 1), 3.0))) == 1.0


def test_blocks_are_at_least_the_root_of_the_steps_and_at_most_a_quarter() -> None:
    assert block_steps(series(autoregressive(400, 0.0))) >= 20
    assert block_steps(series(autoregressive(40, 0.95))) <= 10


def test_weights_resample_whole_blocks_on_a_circle() -> None:
    weights = resampling_weights(12, 4, 50, np.random.default_rng(0))

    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    counts = weights * 12
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
    # A step is drawn together with a neighbour: no count stands alone.
    padded = np.concatenate([counts[:, -1:], counts, counts[:, :1]], axis=1)
    assert ((counts == 0) | (padded[:, :-2] > 0) | (padded[:, 2:] > 0)).all()


def test_every_step_is_drawn_equally_often() -> None:
    weights = resampling_weights(30, 7, 4000, np.random.default_rng(1))

    np.testing.assert_allclose(weights.mean(axis=0), 1 / 30, rtol=0.15)


def test_replicates_spread_as_the_mean_does() -> None:
    n, rho = 300, 0.5
    spread = []
    for seed in range(40):
        drawn = resample(pool([series(autoregressive(n, rho, seed))]))
        assert drawn is not None
        spread.append(float(drawn.means.step.std()))
    true = np.sqrt((1 + rho) / (1 - rho) / n)

    assert np.mean(spread) == pytest.approx(true, rel=0.06)  # 0.89 of it, were they not widened


def test_published_values() -> None:
    assert fixed_b(0.0) == pytest.approx(1.0)
    assert fixed_b(0.1) == pytest.approx(2.2606 / 1.96, rel=1e-3)
    assert fixed_b(1.0) == pytest.approx(4.813 / 1.96, rel=1e-3)


def test_prewhitening_is_what_blocks_miss() -> None:
    assert prewhitening(0.0, 10) == pytest.approx(1.0)
    # Of a long block's view hardly anything is missing, of single steps' everything.
    assert prewhitening(0.5, 1000) == pytest.approx(1.0, abs=2e-3)
    assert prewhitening(0.5, 1) == pytest.approx(np.sqrt(3.0))


def test_resampling_is_deterministic_and_needs_some_steps() -> None:
    side = pool([series(autoregressive(30, 0.2))])
    one, two = resample(side), resample(side)
    assert one is not None
    assert two is not None

    np.testing.assert_array_equal(one.means.step, two.means.step)
    assert resample(pool([series(np.zeros(MIN_STEPS - 1))])) is None
    assert resample(pool([series(np.zeros(MIN_STEPS))])) is not None


def test_ranks_are_resampled_together() -> None:
    rng = np.random.default_rng(3)
    world = replace(draw_world(rng), common=0.2, own=0.001, rotating_ms=0.0, steps=200)
    run, _ = simulate(world, rng)
    built, _ = columns(run, np.ones(run.num_steps, np.bool_), run.samples.sum(axis=0))
    drawn = resample(pool([built]))
    assert drawn is not None

    own = drawn.means.self_time
    correlation = np.corrcoef(own[:, 0], own[:, 1])[0, 1]
    assert correlation > 0.99


class TestSeveralRuns:
    def test_every_run_counts_equally(self) -> None:
        side = pool([series(np.zeros(10)), series(np.full(90, 10.0))])

        assert float(side.centre.step) == pytest.approx(105.0)
        assert side.share.sum() == pytest.approx(1.0)

    def test_three_runs_show_how_runs_differ_and_two_do_not(self) -> None:
        runs = [series(np.full(50, level)) for level in (0.0, 10.0, 20.0)]
        three, two = resample(pool(runs)), resample(pool(runs[:2]))
        assert three is not None
        assert two is not None

        assert three.between_runs
        assert not two.between_runs
        assert float(two.means.step.std()) == pytest.approx(0.0, abs=1e-6)
        # Standard error 10 / √3 with n - 1; Student's t for two degrees of freedom.
        assert float(three.means.step.std()) == pytest.approx(5.77 * 4.303 / 1.96, rel=0.1)

    def test_parting_undoes_joining(self) -> None:
        runs = [series(np.arange(5.0)), series(np.arange(3.0))]
        first, second = Columns.joined(runs).parted([5, 3])

        np.testing.assert_array_equal(first.step, runs[0].step)
        np.testing.assert_array_equal(second.local, runs[1].local)
