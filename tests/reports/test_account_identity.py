"""Every term computed by hand on small runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports.account import Accounting, Measured, account
from diag.reports.model import TERMS, TermName
from diag.reports.panel import Panel
from diag.reports.throughput import choose_unit
from helpers.panels import NS, alone, data_parallel, synchronous

# 20 identical steps: exact numbers, and enough steps for significance.
TYPICAL = {
    "data": 2.0,
    "copy": 1.0,
    "forward": 10.0,
    "backward": 20.0,
    "optimizer": 3.0,
    "host": 4.0,
}
STEPS = 20


def repeated(*ranks: dict[str, float], network: float = 0.0) -> Panel:
    return data_parallel([ranks] * STEPS, network=network)


def more(**extra: float) -> dict[str, float]:
    return {phase: ms + extra.get(phase, 0.0) for phase, ms in TYPICAL.items()}


def milliseconds(accounting: Accounting) -> dict[TermName, float]:
    """The terms that are not zero."""
    known = {t.term: t.ms for t in accounting.terms if t.ms is not None}
    return {name: round(ms, 6) for name, ms in known.items() if abs(ms) > 1e-6}


BASELINE = alone([TYPICAL] * STEPS)


def test_a_run_as_fast_per_rank_as_its_baseline_loses_nothing() -> None:
    result = account(repeated(TYPICAL, TYPICAL), BASELINE)

    assert milliseconds(result) == {}
    assert result.speedup.value == pytest.approx(2.0)
    assert result.efficiency.value == pytest.approx(1.0)
    assert (result.step_ms, result.ideal_ms, result.q) == pytest.approx((40.0, 40.0, 1.0))
    assert result.notes == ()


def test_every_systemic_term_is_the_typical_rank_less_the_baseline() -> None:
    slower = more(data=1, copy=0.5, forward=2, backward=3, optimizer=0.25, host=4)

    result = account(repeated(slower, slower, slower), BASELINE)

    assert milliseconds(result) == {
        "compute": 5.0, "optimizer": 0.25, "data": 1.0, "copy": 0.5, "host": 4.0,
    }  # fmt: skip
    assert result.compute_ms == pytest.approx({"forward": 2.0, "backward": 3.0})
    assert result.term("compute").phase == "backward"


def test_a_term_may_be_negative() -> None:
    result = account(repeated(more(data=-2), more(data=-2)), BASELINE)

    assert milliseconds(result) == {"data": -2.0}
    assert result.term("data").would_save_ms == 0.0
    assert result.speedup.value == pytest.approx(2 * 40 / 38)


def test_of_two_ranks_the_faster_is_typical_so_that_a_straggler_keeps_all_its_excess() -> None:
    result = account(repeated(TYPICAL, more(backward=12)), BASELINE)

    assert milliseconds(result) == {"straggler": 12.0}
    [straggler] = result.stragglers
    assert (straggler.rank, straggler.phase) == (1, "backward")
    assert straggler.excess_ms == pytest.approx(12.0)
    assert result.term("straggler").ranks == (1,)
    assert result.term("straggler").phase == "backward"
    assert result.slow_rank


def test_stragglers_are_listed_worst_first_and_the_term_is_the_worst_one_s() -> None:
    run = repeated(TYPICAL, more(host=5), TYPICAL, more(data=9), TYPICAL)

    result = account(run, BASELINE)

    assert milliseconds(result) == {"straggler": 9.0}
    assert [(s.rank, s.phase) for s in result.stragglers] == [(3, "data"), (1, "host")]


def test_a_small_straggler_beside_a_large_one_is_found() -> None:
    run = repeated(TYPICAL, more(host=60), more(host=1), TYPICAL)

    assert [s.rank for s in account(run, BASELINE).stragglers] == [1, 2]


def test_what_most_ranks_do_is_typical() -> None:
    result = account(repeated(TYPICAL, more(host=5), more(host=5)), BASELINE)

    assert milliseconds(result) == {"host": 5.0}
    assert result.stragglers == ()


def test_ranks_taking_turns_are_jitter_and_the_typical_rank_bears_its_share() -> None:
    ranks = [TYPICAL] * 3
    turns = [[*ranks[:late], more(host=9), *ranks[late + 1 :]] for late in (0, 1, 2)] * 10

    result = account(data_parallel(turns), BASELINE)

    # Each rank is late in a third of the steps: systemic 9/3, the rest of each step's 9 rotates.
    assert milliseconds(result) == {"host": 3.0, "jitter": 6.0}
    assert result.stragglers == ()
    assert result.jitter_expected_ms == pytest.approx(0.0, abs=0.01)
    assert result.rotating
    assert result.jitter_phase == "host"
    assert result.term("jitter").would_save_ms == pytest.approx(6.0)


def test_ranks_slow_in_turn_within_a_step_are_serialization() -> None:
    fast, slow = {"forward": 10.0}, {"forward": 18.0}
    step = [[slow, fast, fast], [fast, slow, fast], [fast, fast, slow]]

    result = account(synchronous([step] * STEPS), alone([{"forward": 30.0}] * STEPS))

    # Over the step all ranks are alike: 38 ms each. But each third waits for its slow rank.
    assert milliseconds(result) == {"compute": 8.0, "serialization": 16.0}
    assert result.inner_ms == pytest.approx(16.0)


def test_ranks_slow_in_different_phases_are_each_above_the_typical_rank() -> None:
    step = [
        [{"forward": 18.0}, {"backward": 10.0}],
        [{"forward": 10.0}, {"backward": 18.0}],
    ]

    result = account(
        synchronous([step] * STEPS), alone([{"forward": 10.0, "backward": 10.0}] * STEPS)
    )

    assert milliseconds(result) == {"straggler": 8.0, "serialization": 8.0}
    assert {(s.rank, s.phase) for s in result.stragglers} == {(0, "forward"), (1, "backward")}


def test_receivers_of_a_broadcast_do_not_hold_each_other_up() -> None:
    # Rank 0 sends after 10 ms; rank 1 receives after 10, rank 2 after 18 and nobody waits for it.
    # In the second half rank 1 is the slow one. Replayed like an all-reduce: 18 + 18.
    run = synchronous(
        [
            [
                [{"forward": 10.0}, {"forward": 10.0}],
                [{"forward": 10.0}, {"forward": 18.0}],
                [{"forward": 18.0}, {"forward": 10.0}],
            ]
        ]
        * STEPS
    )
    waits, phases, ends = [], run.phases_ns.copy(), run.end_ns.copy()
    length = 28 * NS
    starts = np.tile(length * np.arange(STEPS), (3, 1))
    ends = starts + length
    for rank, first in enumerate((10, 10, 18)):
        begin = np.repeat(starts[rank], 2)
        arrive = begin + np.tile([first * NS, run.self_ns[rank, 0]], STEPS)
        leave = begin + np.tile([first * NS, length], STEPS)
        w = run.waits[rank]
        waits.append(replace(w, issue_ns=arrive, wait_ns=arrive, end_ns=leave))
        phases[rank, :, PHASES.index("exposed_comm")] = length - run.self_ns[rank]
    real = replace(run, start_ns=starts, end_ns=ends, phases_ns=phases, waits=tuple(waits))

    result = account(real)

    assert result.step_ms == pytest.approx(28.0)
    assert result.term("serialization").ms == pytest.approx(0.0)
    assert result.term("transfer").ms == pytest.approx(0.0)


def test_exposed_communication_is_transfer() -> None:
    result = account(repeated(TYPICAL, TYPICAL, network=6), BASELINE)

    assert milliseconds(result) == {"transfer": 6.0}
    assert result.exposed_ms == pytest.approx(6.0)


def test_two_causes_at_once() -> None:
    run = repeated(more(data=3), more(data=3, forward=7), more(data=3), network=2)

    result = account(run, BASELINE)

    assert milliseconds(result) == {"data": 3.0, "straggler": 7.0, "transfer": 2.0}
    assert sum(t.ms or 0.0 for t in result.terms) == pytest.approx(result.step_ms - result.ideal_ms)


def test_time_that_no_phase_covers_is_the_residual_and_is_announced() -> None:
    run = repeated(TYPICAL, TYPICAL)
    gap = 2 * NS
    lag = gap * np.arange(STEPS)  # each step starts 2 ms after the one before was released
    late = replace(run, start_ns=run.start_ns + lag, end_ns=run.end_ns + lag, waits=())

    result = account(late, BASELINE)

    # The first step has nothing before it.
    assert milliseconds(result) == {"residual": pytest.approx(2.0 * (STEPS - 1) / STEPS)}
    assert any("not accounted for" in note for note in result.notes)


def test_a_left_out_step_does_not_stretch_the_next_one() -> None:
    steps = [[TYPICAL, TYPICAL]] * 10 + [[more(host=500), TYPICAL]] + [[TYPICAL, TYPICAL]] * 10
    used = np.arange(21) != 10

    result = account(data_parallel(steps), BASELINE, used=used)

    assert milliseconds(result) == {}
    assert result.steps_used == 20


def test_strong_scaling_takes_its_share_of_the_baseline() -> None:
    half = {phase: ms / 2 for phase, ms in TYPICAL.items()}
    run = data_parallel([[half, half | {"host": 4.0}]] * STEPS, samples=4)  # host: 2 more

    result = account(run, BASELINE)

    assert result.q == pytest.approx(0.5)
    assert result.ideal_ms == pytest.approx(20.0)
    assert milliseconds(result) == {"straggler": 2.0}
    assert result.speedup.value == pytest.approx(40 / 22)
    assert result.speedup_ideal == 2


def test_a_baseline_of_several_ranks_keeps_its_own_losses() -> None:
    baseline = repeated(TYPICAL, more(host=2), network=3)
    run = repeated(TYPICAL, TYPICAL, more(host=5), TYPICAL, network=4)

    result = account(run, baseline)

    assert milliseconds(result) == {"straggler": 3.0, "transfer": 1.0}
    assert result.speedup_ideal == 2
    assert result.term("straggler").would_save_ms == pytest.approx(5.0)


def test_without_a_baseline_only_what_the_run_itself_shows() -> None:
    result = account(repeated(TYPICAL, more(host=8), network=2))

    assert result.kind == "estimated"
    assert result.ideal_ms == pytest.approx(40.0)
    assert milliseconds(result) == {"straggler": 8.0, "transfer": 2.0}
    assert result.speedup.value == pytest.approx(2 * 40 / 50)
    unknown = {t.term for t in result.terms if t.ms is None}
    assert unknown == {"compute", "optimizer", "data", "copy", "host"}
    assert result.compute_ms is None


def test_without_samples_the_baseline_is_of_no_use() -> None:
    run = repeated(TYPICAL, TYPICAL)
    unknown = replace(run, samples=np.full_like(run.samples, np.nan))

    result = account(unknown, BASELINE)

    assert result.kind == "estimated"
    assert result.samples_per_step is None
    assert result.throughput is None
    assert any("samples per step are not known" in note for note in result.notes)


def test_stated_samples_overrule_counted_ones() -> None:
    result = account(
        repeated(TYPICAL, TYPICAL), BASELINE, samples_per_step=32, baseline_samples_per_step=16
    )

    assert result.q == pytest.approx(1.0)
    assert result.throughput == pytest.approx(32 / 0.040)
    assert result.baseline_throughput == pytest.approx(16 / 0.040)


def test_a_single_rank_has_no_straggler_no_jitter_and_no_serialization() -> None:
    result = account(data_parallel([[TYPICAL]] * STEPS, network=3))

    assert milliseconds(result) == {"transfer": 3.0}
    assert not result.slow_rank
    assert not result.rotating
    assert result.stragglers == ()
    assert result.speedup.value == pytest.approx(40 / 43)


def test_without_recorded_waits_serialization_is_unknown_and_transfer_holds_it() -> None:
    step = [[{"forward": 10.0}, {"forward": 18.0}], [{"forward": 18.0}, {"forward": 10.0}]]
    run = replace(synchronous([step] * STEPS), waits=())

    result = account(run, alone([{"forward": 28.0}] * STEPS))

    assert milliseconds(result) == {"transfer": 8.0}
    assert result.term("serialization").ms is None
    assert result.inner_ms is None


def test_few_steps_give_values_without_intervals_or_verdicts() -> None:
    result = account(data_parallel([[TYPICAL, more(host=30)]] * 5), BASELINE)

    assert milliseconds(result) == {"straggler": 30.0}
    assert result.efficiency.low is None
    assert result.term("straggler").high is None
    assert not result.slow_rank
    assert any("no intervals" in note for note in result.notes)


def test_no_steady_step_is_an_error_with_its_number() -> None:
    with pytest.raises(ValueError, match="no steady step is left in a run of 20 steps"):
        account(repeated(TYPICAL, TYPICAL), BASELINE, used=np.zeros(STEPS, np.bool_))


def test_every_phase_of_every_rank_is_given() -> None:
    result = account(repeated(TYPICAL, more(host=8), network=2), BASELINE)

    first, second = result.per_rank
    assert first.phases_ms == pytest.approx({**TYPICAL, "exposed_comm": 10.0})
    assert second.phases_ms["exposed_comm"] == pytest.approx(2.0)
    assert (first.self_ms, second.self_ms) == pytest.approx((40.0, 48.0))
    assert first.step_ms == second.step_ms == pytest.approx(50.0)
    assert first.work == 8.0


class TestSavings:
    def test_curing_one_of_two_slow_ranks_gains_what_the_other_leaves(self) -> None:
        run = repeated(TYPICAL, more(host=5), TYPICAL, more(data=9))
        both = account(run, BASELINE).term("straggler")

        assert both.would_save_ms == pytest.approx(9.0)
        assert both.speedup_without == pytest.approx(4.0)

    def test_a_straggler_hides_systemic_excess_it_does_not_share(self) -> None:
        # The slow rank's loader has time to spare: curing data gains nothing while it is slow.
        run = repeated(more(data=6), more(data=6), more(forward=20))

        result = account(run, BASELINE)

        assert milliseconds(result) == {"data": 6.0, "straggler": 14.0}
        assert result.term("data").would_save_ms == pytest.approx(0.0)
        assert result.term("straggler").would_save_ms == pytest.approx(14.0)

    def test_curing_a_rank_gains_no_more_than_the_next_slowest_leaves(self) -> None:
        # Its loader is ahead because it computes slowly; the second slowest rank is 3 over.
        run = repeated(TYPICAL, more(forward=20, data=-2), more(host=3), TYPICAL, TYPICAL)

        result = account(run, BASELINE)

        [first, second] = result.stragglers
        assert (first.rank, first.excess_ms) == (1, pytest.approx(18.0))
        assert second.rank == 2
        assert result.term("straggler").would_save_ms == pytest.approx(18.0)

    def test_systemic_excess_is_gained_on_all_ranks(self) -> None:
        result = account(repeated(more(data=6), more(data=6)), BASELINE)

        assert result.term("data").would_save_ms == pytest.approx(6.0)
        assert result.term("data").speedup_without == pytest.approx(2.0)

    def test_communication_and_waiting_are_gained_whole(self) -> None:
        fast, slow = {"forward": 10.0}, {"forward": 18.0}
        step = [[slow, fast], [fast, slow]]
        result = account(synchronous([step] * STEPS, network=2), alone([{"forward": 28.0}] * STEPS))

        assert result.term("serialization").would_save_ms == pytest.approx(8.0)
        assert result.term("transfer").would_save_ms == pytest.approx(4.0)
        assert result.term("residual").would_save_ms is None


class TestSeveralRuns:
    def test_values_are_means_over_runs(self) -> None:
        runs = [repeated(TYPICAL, more(host=h)) for h in (4.0, 6.0, 8.0)]
        further = [Measured(p, np.ones(STEPS, np.bool_)) for p in runs[1:]]
        baselines = [Measured(BASELINE, np.ones(STEPS, np.bool_))] * 2

        result = account(runs[0], BASELINE, more_runs=further, more_baselines=baselines)

        assert milliseconds(result) == {"straggler": 6.0}
        assert result.interval_kind == "between-runs"
        low, high = result.term("straggler").low, result.term("straggler").high
        assert low is not None
        assert high is not None
        assert low < 4.0  # three runs say little
        assert high > 8.0

    def test_intervals_hold_between_runs_only_if_both_sides_have_three(self) -> None:
        further = [Measured(repeated(TYPICAL, TYPICAL), np.ones(STEPS, np.bool_))] * 2

        result = account(repeated(TYPICAL, TYPICAL), BASELINE, more_runs=further)

        assert result.interval_kind == "within-run"

    def test_runs_of_different_sizes_are_refused(self) -> None:
        other = Measured(repeated(TYPICAL, TYPICAL, TYPICAL), np.ones(STEPS, np.bool_))

        with pytest.raises(ValueError, match="number of ranks"):
            account(repeated(TYPICAL, TYPICAL), BASELINE, more_runs=[other])


class TestUnit:
    used = np.ones(STEPS, np.bool_)

    def counted(self, tokens: np.ndarray | float) -> tuple[Panel, np.ndarray]:
        panel = repeated(TYPICAL, TYPICAL)
        return replace(panel, tokens=np.zeros_like(panel.samples) + tokens), self.used

    def test_samples_where_tokens_are_unknown(self) -> None:
        assert choose_unit([(repeated(TYPICAL), self.used)]) == "samples"

    def test_samples_where_sequences_have_one_length(self) -> None:
        assert choose_unit([self.counted(8 * 512.0)]) == "samples"

    def test_tokens_where_sequences_vary(self) -> None:
        assert choose_unit([self.counted(np.linspace(1000, 4000, STEPS))]) == "tokens"

    def test_tokens_where_only_tokens_are_known(self) -> None:
        panel, used = self.counted(4096.0)
        unknown = replace(panel, samples=np.full_like(panel.samples, np.nan))

        assert choose_unit([(unknown, used)]) == "tokens"

    def test_tokens_decide_q(self) -> None:
        run, _ = self.counted(3000.0)
        baseline = replace(BASELINE, tokens=np.full_like(BASELINE.samples, 6000.0))

        assert account(run, baseline, unit="tokens").q == pytest.approx(0.5)


def test_terms_are_complete_and_in_order() -> None:
    result = account(repeated(TYPICAL, TYPICAL), BASELINE)

    assert tuple(t.term for t in result.terms) == TERMS
    assert tuple(result.typical_ms) == LOCAL_PHASES
