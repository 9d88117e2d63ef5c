"""Intervals: what they hold, and how often they hold it (the whole count is bench/coverage.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diag.reports.account import account
from diag.reports.columns import Columns
from diag.reports.intervals import intervals
from diag.reports.stats import pool, resample
from helpers.panels import alone, data_parallel
from helpers.synthetic import World, draw_world, noise_only, simulate, truth

EQUAL = np.tile(np.array([2.0, 1.0, 28.0, 52.0, 6.0, 8.0]), (8, 1))


def noisy(own: np.ndarray) -> Columns:
    """Ranks that only compute. own: [S, R] ms of forward, or [S, R, 6] of all phases."""
    local = own
    if own.ndim == 2:
        local = np.zeros((*own.shape, 6))
        local[:, :, 2] = own
    top, zero = local.sum(axis=2).max(axis=1), np.zeros(len(own))
    return Columns(local, top, zero, top, top, zero + 8.0)


def limits(own: np.ndarray, name: str) -> tuple[float, float]:
    drawn = resample(pool([noisy(own)]))
    assert drawn is not None
    return intervals(drawn, None)[name]


def test_without_noise_an_interval_is_its_value() -> None:
    step = [{"forward": 30.0}, {"forward": 36.0}]
    result = account(data_parallel([step] * 30, network=2), alone([{"forward": 28.0}] * 30))

    for term in result.terms:
        assert (term.low, term.high) == pytest.approx((term.ms, term.ms), abs=1e-6)
    assert result.efficiency.low == pytest.approx(28 / 38)


def test_a_straggler_below_zero_lies_in_its_interval_too() -> None:
    """Each rank is fast in a phase of its own, so the typical one is slower than all of them."""
    step = [
        {"forward": 10.0, "backward": 20.0, "host": 20.0},
        {"forward": 20.0, "backward": 10.0, "host": 20.0},
        {"forward": 20.0, "backward": 20.0, "host": 10.0},
    ]
    straggler = account(data_parallel([step] * 30)).term("straggler")
    assert (straggler.ms, straggler.low, straggler.high) == pytest.approx((-10.0, -10.0, -10.0))


def test_more_steps_narrow_the_interval() -> None:
    world = World(EQUAL[:4], EQUAL[0], 1.0, 100, 100, own=0.05, common=0.03, correlation=0.2)
    widths = []
    for steps in (100, 1600):
        more = replace(world, steps=steps, baseline_steps=steps)
        result = account(*simulate(more, np.random.default_rng(1)))
        assert result.speedup.low is not None
        assert result.speedup.high is not None
        widths.append(result.speedup.high - result.speedup.low)

    assert 2.5 < widths[0] / widths[1] < 8  # √16 is 4


def test_noise_shared_by_the_ranks_widens_compute_but_not_the_straggler() -> None:
    quiet = World(EQUAL[:4], EQUAL[0], 1.0, 200, 200, own=0.02, correlation=0.2)

    def width(world: World, name: str) -> float:
        term = account(*simulate(world, np.random.default_rng(2))).term(name)  # type: ignore[arg-type]
        assert term.low is not None
        assert term.high is not None
        return term.high - term.low

    shaken = replace(quiet, common=0.1)
    assert width(shaken, "compute") > 3 * width(quiet, "compute")
    assert width(shaken, "straggler") < 1.5 * width(quiet, "straggler")


@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_equal_ranks_have_a_straggler_interval_that_starts_at_zero(ranks: int) -> None:
    # In six phases the typical rank is the median of each: below every rank, by noise alone.
    zero = 0
    for seed in range(25):
        local = 20 + np.random.default_rng(seed).standard_normal((120, ranks, 6))
        zero += limits(local, "straggler")[0] == 0.0

    assert zero >= 24  # with ranks taken at their word: 17 of 25 with 32


def test_jitter_s_interval_undoes_the_bias_of_the_slowest_mean() -> None:
    # 32 equal ranks: E max of 32 normals is 2.07; the slowest mean takes 2.07 √(1/100) away.
    covered = 0
    for seed in range(25):
        own = 100 + np.random.default_rng(seed).standard_normal((100, 32))
        low, high = limits(own, "jitter")
        covered += low <= 2.0697 <= high

    assert covered >= 23  # with ranks taken at their word: 19


def test_an_event_too_rare_to_be_seen_may_still_be() -> None:
    rng = np.random.default_rng(0)
    own = np.stack([100 + rng.standard_normal(100), 150 + rng.standard_normal(100)], axis=1)
    low, high = limits(own, "jitter")

    assert low == 0.0
    assert 0.02 < high < 0.2  # 3.9 of 100 steps, of the size of the noise


def test_what_happens_in_most_steps_is_not_taken_for_rare() -> None:
    rng = np.random.default_rng(0)
    own = np.full((200, 4), 100.0)
    own[np.arange(200), rng.integers(4, size=200)] += 8
    low, high = limits(own, "jitter")

    # The mean of the maximum is exact; what varies is the share of the rank that was late most.
    assert low <= 6.0 <= high
    assert high - low < 1.5


def test_a_seed_for_the_rng_comes_from_the_shape_alone() -> None:
    rng = np.random.default_rng(4)
    own = 100 + rng.standard_normal((60, 3))

    assert limits(own, "jitter") == limits(own.copy(), "jitter")
    assert limits(own + 1000, "jitter") == pytest.approx(limits(own, "jitter"), abs=1e-6)


def test_coverage_in_short() -> None:
    """60 records: a term covered as it should falls below 85% about once in 3,000 times."""
    rng = np.random.default_rng(2024)
    hits: dict[str, int] = {}
    records = 60
    for _ in range(records):
        world = draw_world(rng)
        known = truth(world, rng, draws=5_000)
        result = account(*simulate(world, rng))
        for term in result.terms:
            assert term.low is not None
            assert term.high is not None
            inside = term.low - 1e-6 <= known[term.term] <= term.high + 1e-6
            hits[term.term] = hits.get(term.term, 0) + inside

    assert min(hits.values()) >= 0.85 * records, hits


def test_noise_is_not_called_a_cause() -> None:
    rng = np.random.default_rng(77)
    alarms = 0
    for _ in range(40):
        result = account(*simulate(noise_only(draw_world(rng)), rng))
        alarms += result.slow_rank + result.rotating

    assert alarms <= 2  # of 80; the bench counts 2,000
