"""Waiting for others at inner synchronizations, by hand and against an event simulation."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from diag.reports import replay as module
from diag.reports.panel import EXPOSED, Panel, Waits
from diag.reports.replay import replay
from helpers.panels import NS, data_parallel, moved_clocks, synchronous, waits_of
from helpers.synthetic import World, simulate


def inner_ms(panel: Panel) -> list[float]:
    used = np.ones(panel.num_steps, np.bool_)
    return (replay(panel, used).inner_ns / NS).tolist()


def panel_of(ranks: list[list[tuple[int, float, float, float]]], end: float) -> Panel:
    """One step from 0 to `end` ms; per rank (key, issue, wait, return) in ms."""
    waits = tuple(
        waits_of([(k, 0, round(i * NS), round(w * NS), round(e * NS)) for k, i, w, e in rows])
        for rows in ranks
    )
    shape = (len(ranks), 1)
    phases = np.zeros((*shape, 7), np.int64)
    for r, rows in enumerate(ranks):
        phases[r, 0, EXPOSED] = round(sum(e - w for _, _, w, e in rows) * NS)
        phases[r, 0, 2] = round(end * NS) - phases[r, 0, EXPOSED]
    nan, zero = np.full(shape, np.nan), np.zeros(shape, np.int64)
    end_ns = np.full(shape, round(end * NS))
    return Panel(
        tuple(range(len(ranks))), np.zeros(1, np.int64), zero, end_ns, phases, nan, nan, zero, zero,
        waits,
    )  # fmt: skip


def test_one_synchronization_a_step_costs_nothing_but_the_slowest_rank() -> None:
    panel = data_parallel([[{"forward": 10}, {"forward": 30}]] * 3, network=4)

    assert inner_ms(panel) == [0, 0, 0]


def test_ranks_slow_in_turn_add_up() -> None:
    # Segments 10 + 20 against 20 + 10: each rank works 30 ms, the step takes 20 + 20.
    step = [[{"forward": 10}, {"backward": 20}], [{"forward": 20}, {"backward": 10}]]

    assert inner_ms(synchronous([step, step], network=3)) == [10, 10]


def test_synchronous_waits_cost_the_sum_of_the_slowest_segments() -> None:
    rng = np.random.default_rng(7)
    work = rng.integers(1, 50, size=(20, 4, 5))  # steps, ranks, segments
    panel = synchronous(
        [[[{"forward": float(ms)} for ms in rank] for rank in step] for step in work], network=2
    )

    expected = work.max(axis=1).sum(axis=1) - work.sum(axis=2).max(axis=1)
    np.testing.assert_allclose(inner_ms(panel), expected)


def test_a_collective_issued_early_hides_lateness() -> None:
    # Rank 0 issues at 2 and waits at 10, rank 1 issues at 8 and waits at 10: nobody waits long.
    early = panel_of([[(1, 2, 10, 12), (2, 20, 20, 22)], [(1, 8, 10, 12), (2, 20, 20, 22)]], 22)

    assert inner_ms(early) == [0]


@pytest.mark.parametrize("same_order", [True, False])
def test_receivers_of_a_broadcast_wait_for_its_root_alone(same_order: bool) -> None:
    # Key 1 is broadcast from rank 0. Rank 2 comes 8 late to it, then is 8 faster than rank 1.
    rows = [
        [(1, 10, 10, 10), (2, 28, 28, 29)],
        [(1, 10, 10, 10), (2, 28, 28, 29)],
        [(1, 18, 18, 18), (2, 28, 28, 29)],
    ]
    if not same_order:
        rows[0] = [(3, 1, 1, 1), *rows[0]]  # only rank 0 has key 3: the general path
    panel = panel_of(rows, 29)
    root = [np.where(w.key == 1, 0, -1) for w in panel.waits]
    sent = replace(
        panel, waits=tuple(replace(w, root=r) for w, r in zip(panel.waits, root, strict=True))
    )
    later = replace(
        panel,
        waits=tuple(replace(w, root=np.where(w.key == 1, 2, -1)) for w in panel.waits),
    )

    assert inner_ms(sent) == [0]
    assert inner_ms(later) == [8]  # were rank 2 the root, all would wait for it
    assert inner_ms(panel) == [8]  # as for an all-reduce


def test_a_collective_issued_late_by_one_rank_holds_up_the_other() -> None:
    # Rank 1 issues at 15 what rank 0 needs at 10; then rank 0 works 10, rank 1 works 5.
    late = panel_of([[(1, 2, 10, 15), (2, 25, 25, 25)], [(1, 15, 15, 15), (2, 20, 20, 25)]], 25)

    # Without a network: 15, then rank 0 is done at 25; the slowest rank alone works 20.
    assert inner_ms(late) == [5]


def test_the_network_s_own_time_is_not_waiting() -> None:
    # Both ranks issue at 0 and block from 5 until the transfer is over at 50.
    panel = panel_of([[(1, 0, 5, 50), (2, 60, 60, 61)], [(1, 0, 5, 50), (2, 60, 60, 61)]], 61)

    assert inner_ms(panel) == [0]


def test_a_collective_issued_in_the_step_before_counts_as_issued_at_the_start() -> None:
    crossing = panel_of([[(1, -30, 4, 6), (2, 20, 20, 20)], [(1, -1, 4, 6), (2, 20, 20, 20)]], 20)

    assert inner_ms(crossing) == [0]


def test_a_collective_issued_while_blocked_on_another_counts_from_where_the_block_began() -> None:
    # Another thread issues key 2 at 8, inside the block from 5 to 10.
    rows = [(1, 5, 5, 10), (2, 8, 12, 13), (3, 20, 20, 20)]

    assert inner_ms(panel_of([rows, rows], 20)) == [0]


def test_a_wait_that_one_rank_lacks_holds_up_only_those_that_have_it() -> None:
    # Keys 1 and 3 are everyone's; only ranks 0 and 1 wait for key 2, rank 1 10 ms late.
    panel = panel_of(
        [
            [(1, 5, 5, 5), (2, 10, 10, 20), (3, 30, 30, 30)],
            [(1, 5, 5, 5), (2, 20, 20, 20), (3, 22, 22, 30)],
            [(1, 5, 5, 5), (3, 11, 11, 30)],
        ],
        30,
    )

    # Rank 0 works 20 and waits 10 for rank 1, which works 22: done at 30.
    assert inner_ms(panel) == [8]


def test_another_order_on_each_rank_is_replayed() -> None:
    # Rank 0 waits for 1 then 2, rank 1 for 2 then 1; both were issued long before.
    panel = panel_of(
        [
            [(1, 0, 10, 11), (2, 1, 12, 13), (3, 20, 20, 20)],
            [(2, 0, 10, 11), (1, 1, 12, 13), (3, 20, 20, 20)],
        ],
        20,
    )

    assert inner_ms(panel) == [0]


def test_an_order_that_could_never_have_run_does_not_hang() -> None:
    rows = [[(1, 5, 5, 9), (2, 10, 10, 20)], [(2, 5, 5, 9), (1, 10, 10, 20)]]

    assert inner_ms(panel_of(rows, 20))[0] >= 0


def test_waits_on_subgroups_are_free_and_said_so() -> None:
    step = [[{"forward": 10}, {"backward": 20}], [{"forward": 20}, {"backward": 10}]]
    panel = synchronous([step])
    subgroup = np.array([False, True])
    waits = tuple(replace(w, world=subgroup) for w in panel.waits)

    played = replay(replace(panel, waits=waits), np.ones(1, np.bool_))

    assert played.inner_ns.tolist() == [0]
    assert "waits on subgroups of the ranks count as transfer" in played.notes


def test_without_waits_serialization_is_unknown() -> None:
    panel = replace(data_parallel([[{"forward": 1}, {"forward": 2}]]), waits=())

    played = replay(panel, np.ones(1, np.bool_))

    assert not played.known
    assert played.notes


def test_waits_that_do_not_explain_the_blocking_are_not_replayed() -> None:
    # As if only the host's moment of calling wait() were known, and the device blocked.
    panel = synchronous([[[{"forward": 10}, {"forward": 20}], [{"forward": 20}, {"forward": 10}]]])
    instant = tuple(replace(w, end_ns=w.wait_ns) for w in panel.waits)

    played = replay(replace(panel, waits=instant), np.ones(1, np.bool_))

    assert not played.known
    assert "0% of the exposed time" in played.notes[0]


def test_one_rank_waits_for_nobody() -> None:
    played = replay(data_parallel([[{"forward": 1}]], network=5), np.ones(1, np.bool_))

    assert played.known
    assert played.inner_ns.tolist() == [0]


def test_steps_without_their_waits_take_the_mean_of_the_others() -> None:
    step = [[{"forward": 10}, {"backward": 20}], [{"forward": 20}, {"backward": 10}]]
    panel = synchronous([step, step, step])
    kept = tuple(_pick(w, w.step != 1) for w in panel.waits)

    played = replay(replace(panel, waits=kept), np.ones(3, np.bool_))

    assert (played.inner_ns / NS).tolist() == [10, 10, 10]
    assert any("1 of 3 steps" in note for note in played.notes)


def test_only_used_steps_are_replayed() -> None:
    even = [[{"forward": 10}, {"backward": 20}], [{"forward": 20}, {"backward": 10}]]
    clean = [[{"forward": 15}, {"backward": 15}], [{"forward": 15}, {"backward": 15}]]
    panel = synchronous([even, clean, even])

    assert replay(panel, np.array([False, True, True])).inner_ns.tolist() == [0, 10 * NS]


def test_clocks_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    work = rng.integers(1, 50, size=(5, 3, 3))
    panel = synchronous([[[{"forward": float(x)} for x in r] for r in step] for step in work])
    moved = moved_clocks(panel, [0, 10**15, -(10**12)])

    assert inner_ms(moved) == inner_ms(panel)


def test_overlapping_waits_are_blocked_once() -> None:
    # A wrapper's wait around another's: from 5 to 10 the rank is blocked, once.
    nested = [(1, 5, 5, 10), (2, 6, 6, 9), (3, 20, 20, 20)]

    assert inner_ms(panel_of([nested, nested], 20)) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_both_paths_agree_with_an_event_simulation(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    ranks, count = 3, 6
    panel = _prefetching(rng, ranks, count)
    fast = inner_ms(panel)[0]
    no_step_alike = np.zeros(1, np.bool_)
    monkeypatch.setattr(module, "_replay_alike", lambda *_: (np.zeros(1), no_step_alike))

    assert fast == pytest.approx(_simulated(panel), abs=1e-6)
    assert inner_ms(panel)[0] == pytest.approx(fast, abs=1e-6)


def test_a_free_network_is_never_slower_than_the_real_one() -> None:
    phases = np.tile(np.array([2.0, 1.0, 28.0, 52.0, 6.0, 8.0]), (4, 1))
    world = World(
        phases, phases[0], 1.0, 200, 8, own=0.1, transfer_ms=1.0, inner=("copy", "forward")
    )
    run, _ = simulate(world, np.random.default_rng(1))
    used = np.ones(run.num_steps, np.bool_)

    waited = replay(run, used).inner_ns
    exposed = run.phases_ns[:, :, EXPOSED]
    most = (exposed - (run.self_ns.max(axis=0) - run.self_ns)).mean(axis=0)

    assert (waited >= 0).all()
    assert (waited <= most + 1).all()
    assert waited.mean() > 0


def test_a_large_record_is_replayed_within_a_second_or_so() -> None:
    phases = np.tile(np.array([2.0, 1.0, 28.0, 52.0, 6.0, 8.0]), (64, 1))
    sites = ("optimizer", "host", "data", "copy", "forward")
    world = World(phases, phases[0], 1.0, 2000, 8, own=0.05, transfer_ms=1.0, inner=sites)
    run, _ = simulate(world, np.random.default_rng(1))
    started = time.perf_counter()

    replay(run, np.ones(run.num_steps, np.bool_))

    assert time.perf_counter() - started < 3  # 0.1 s on an idle machine


def test_ragged_records_are_sampled_not_replayed_for_hours() -> None:
    phases = np.tile(np.array([2.0, 1.0, 28.0, 52.0, 6.0, 8.0]), (8, 1))
    world = World(phases, phases[0], 1.0, 1500, 8, own=0.1, transfer_ms=1.0, inner=("forward",))
    run, _ = simulate(world, np.random.default_rng(1))
    used = np.ones(run.num_steps, np.bool_)
    whole = replay(run, used)
    first = run.waits[0]
    ragged = replace(run, waits=(_pick(first, first.key % 2 == 1), *run.waits[1:]))
    ragged_steps = replay(ragged, used)

    assert any("were not replayed" in note for note in ragged_steps.notes)
    assert ragged_steps.inner_ns.mean() < 1.5 * whole.inner_ns.mean()


def _pick(waits: Waits, keep: np.ndarray) -> Waits:
    columns = (getattr(waits, name) for name in Waits.__dataclass_fields__)
    return Waits(*(None if column is None else column[keep] for column in columns))


def _prefetching(rng: np.random.Generator, ranks: int, count: int) -> Panel:
    """Ranks that issue each collective one segment before they wait for it, over a slow network."""
    work = rng.integers(1, 40, size=(ranks, 2 * count)).astype(float)
    clock = np.zeros(ranks)
    issue = np.zeros((ranks, count + 1))
    rows: list[list[tuple[int, float, float, float]]] = [[] for _ in range(ranks)]
    for k in range(count):
        clock += work[:, 2 * k]
        last = k == count - 1
        if last:
            issue[:, k] = clock
        else:
            issue[:, k + 1] = clock - work[:, 2 * k] / 2
        if k == 0:
            issue[:, 0] = work[:, 0] / 4
        complete = issue[:, k].max() + rng.integers(0, 5)
        after = np.maximum(clock, complete)
        for r in range(ranks):
            rows[r].append((k, issue[r, k], clock[r], after[r]))
        clock = after
    end = float(clock.max())
    for r, row in enumerate(rows):
        key, issued, wait, _ = row[-1]
        rows[r][-1] = (key, issued, wait, end)
    return panel_of(rows, end)


def _simulated(panel: Panel) -> float:
    """The same by fixed point: lower every return until nothing moves. ms."""
    ranks = [
        list(zip(w.key.tolist(), w.issue_ns, w.wait_ns, w.end_ns, strict=True)) for w in panel.waits
    ]
    returns = [[0.0] * len(rows) for rows in ranks]
    for _ in itertools.repeat(None, 200):
        issued: dict[int, float] = {}
        for r, rows in enumerate(ranks):
            for key, issue, _, _ in rows:
                issued[key] = max(issued.get(key, 0.0), _own_clock(rows, returns[r], issue))
        moved = [
            [
                max(_own_clock(rows[:j], returns[r], wait), issued[key])
                for j, (key, _, wait, _) in enumerate(rows)
            ]
            for r, rows in enumerate(ranks)
        ]
        if moved == returns:
            break
        returns = moved
    slowest = float(panel.self_ns.max())
    return (max(max(r) for r in returns) - slowest) / NS


def _own_clock(rows: list[tuple[int, int, int, int]], returns: list[float], at: int) -> float:
    """When a rank reaches the recorded instant `at`, given the replayed returns of its waits."""
    before = [(j, end) for j, (_, _, _, end) in enumerate(rows) if end <= at]
    inside = [wait for _, _, wait, end in rows if wait < at < end]
    at = inside[0] if inside else at
    if not before:
        return float(at)
    j, end = before[-1]
    return returns[j] + float(at - end)
