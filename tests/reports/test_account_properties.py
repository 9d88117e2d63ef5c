"""What holds for every run whatsoever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diag.reports.account import Accounting, account
from diag.reports.panel import Panel
from diag.reports.pop import pop
from helpers.panels import data_parallel, moved_clocks, relabelled, synchronous
from helpers.synthetic import draw_world, simulate

PHASES = ("data", "copy", "forward", "backward", "optimizer", "host")
work = st.fixed_dictionaries({phase: st.integers(0, 40).map(float) for phase in PHASES})


@st.composite
def runs(draw: st.DrawFn, min_ranks: int = 1) -> Panel:
    ranks = draw(st.integers(min_ranks, 4))
    steps = draw(st.integers(1, 14))
    segments = draw(st.integers(1, 3))
    rank = st.lists(work, min_size=segments, max_size=segments)
    step = st.lists(rank, min_size=ranks, max_size=ranks)
    local = draw(st.lists(step, min_size=steps, max_size=steps))
    # Nothing takes no time at all, or there is no step.
    local = [[[*r[:-1], {**r[-1], "host": r[-1]["host"] + 1}] for r in s] for s in local]
    panel = synchronous(
        local, network=draw(st.integers(0, 9)), samples=draw(st.sampled_from([1.0, 8.0]))
    )
    skew = np.array(draw(st.lists(st.integers(0, 500_000), min_size=ranks, max_size=ranks)))
    return _with_gaps(panel, skew)


def _with_gaps(panel: Panel, skew: np.ndarray) -> Panel:
    """Let time pass between the steps that no phase covers."""
    lag = skew[:, None] * np.arange(panel.num_steps)
    waits = tuple(
        replace(
            w,
            issue_ns=w.issue_ns + lag[r, w.step],
            wait_ns=w.wait_ns + lag[r, w.step],
            end_ns=w.end_ns + lag[r, w.step],
        )
        for r, w in enumerate(panel.waits)
    )
    return replace(panel, start_ns=panel.start_ns + lag, end_ns=panel.end_ns + lag, waits=waits)


def same(one: Accounting, other: Accounting) -> None:
    for a, b in zip(one.terms, other.terms, strict=True):
        assert a.term == b.term
        assert a.ms == pytest.approx(b.ms, abs=1e-6)
        assert a.would_save_ms == pytest.approx(b.would_save_ms, abs=1e-6)
    assert one.speedup.value == pytest.approx(other.speedup.value)


@settings(max_examples=60, deadline=None)
@given(run=runs(), baseline=runs() | st.none())
def test_the_terms_sum_to_the_lost_time_and_the_step_is_theirs(
    run: Panel, baseline: Panel | None
) -> None:
    result = account(run, baseline)

    lost = sum(t.ms for t in result.terms if t.ms is not None)
    assert lost == pytest.approx(result.step_ms - result.ideal_ms, abs=1e-6)
    shares = sum(t.share for t in result.terms if t.share is not None)
    assert shares == pytest.approx(1 - result.ideal_ms / result.step_ms, abs=1e-9)
    assert result.efficiency.value == pytest.approx(result.ideal_ms / result.step_ms)


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_a_rank_s_phases_sum_to_its_step_but_for_uncovered_time(run: Panel) -> None:
    result = account(run)
    uncovered = result.term("residual").ms

    covered = np.mean([sum(r.phases_ms.values()) for r in result.per_rank])
    assert np.mean([r.step_ms for r in result.per_rank]) == pytest.approx(result.step_ms)
    assert result.step_ms - covered == pytest.approx(uncovered, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_what_can_never_be_negative_is_not(run: Panel) -> None:
    result = account(run)

    for name in ("jitter", "serialization"):
        ms = result.term(name).ms
        assert ms is None or ms >= -1e-9
    # The typical rank is put together phase by phase: it may be slower than every real one.
    slowest_on_average = max(rank.self_ms for rank in result.per_rank)
    if slowest_on_average >= result.typical_self_ms:
        assert (result.term("straggler").ms or 0.0) >= -1e-9
    else:
        assert result.stragglers == ()
    for term in result.terms:
        assert term.would_save_ms is None or term.would_save_ms >= -1e-9


@settings(max_examples=60, deadline=None)
@given(run=runs(), baseline=runs() | st.none())
def test_a_value_lies_in_its_interval(run: Panel, baseline: Panel | None) -> None:
    result = account(run, baseline)

    for term in result.terms:
        if term.low is not None and term.high is not None and term.ms is not None:
            assert term.low - 1e-6 <= term.ms <= term.high + 1e-6
            assert np.isfinite([term.low, term.high]).all()


@settings(max_examples=40, deadline=None)
@given(run=runs(min_ranks=2), data=st.data())
def test_the_names_of_the_ranks_do_not_matter(run: Panel, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(run.num_ranks)))

    same(account(run), account(relabelled(run, order)))


@settings(max_examples=40, deadline=None)
@given(run=runs(), data=st.data())
def test_the_ranks_clocks_do_not_matter(run: Panel, data: st.DataObject) -> None:
    offsets = [data.draw(st.integers(-(10**15), 10**15)) for _ in range(run.num_ranks)]

    same(account(run), account(moved_clocks(run, offsets)))


@settings(max_examples=40, deadline=None)
@given(run=runs(), baseline=runs())
def test_pop_s_factors_multiply_to_the_efficiency(run: Panel, baseline: Panel) -> None:
    factors = pop(account(run, baseline))
    each = (factors.computation, factors.load_balance, factors.serialization, factors.transfer)

    if all(f is not None for f in each) and factors.efficiency is not None:
        product = np.prod([f for f in each if f is not None])
        assert product == pytest.approx(factors.efficiency)


def test_relabelling_renames_the_stragglers() -> None:
    typical = {"forward": 30.0}
    run = data_parallel([[typical, {"forward": 40.0}, typical]] * 30)

    assert [s.rank for s in account(run).stragglers] == [1]
    assert [s.rank for s in account(relabelled(run, [1, 0, 2])).stragglers] == [0]


def test_the_same_record_gives_the_same_numbers() -> None:
    rng = np.random.default_rng(5)
    run, baseline = simulate(draw_world(rng), rng)

    assert account(run, baseline) == account(run, baseline)
