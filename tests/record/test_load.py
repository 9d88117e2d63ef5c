"""From a record to a Panel: alignment, units, keys, and what is said about what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diag.record.reader import Run, read_run
from diag.record.schema import PHASES, StepFlag
from diag.reports.load import load_panel
from diag.reports.observations import load_events, load_times, memory_series, peak_memory
from diag.reports.panel import EXPOSED, Panel
from helpers.records import START_NS, released_together, write_rows, write_run
from helpers.rows import collective_row, event_row, gauge_row, step_row

Rows = dict[int, list[tuple[Any, ...]]]


def random_phases(ranks: int, steps: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    local = np.random.default_rng(seed).integers(10**5, 10**7, (ranks, steps, 7))
    return released_together(local, 10**6)


def overwrite(path: Path, stream: str, rows: Rows) -> Run:
    for rank, its_rows in rows.items():
        write_rows(path / "ranks" / f"{rank:05d}-0", stream, its_rows)
    return read_run(path)


def panel_of_steps(tmp_path: Path, rows: Rows) -> Panel:
    path = write_run(tmp_path, np.ones((len(rows), 1, 7), np.int64), num_collectives=0)
    return load_panel(overwrite(path, "steps", rows))


def test_a_panel_holds_what_was_written(tmp_path: Path) -> None:
    phases = random_phases(3, 50)
    samples = np.arange(150).reshape(3, 50)
    flags = np.where(np.arange(50) < 4, int(StepFlag.WARM_UP), 0)
    path = write_run(
        tmp_path, phases, samples=samples, tokens=None, flags=flags, probe_ns=7, num_collectives=3
    )
    panel = load_panel(read_run(path))
    assert panel.ranks == (0, 1, 2)
    assert panel.warnings == ()
    np.testing.assert_array_equal(panel.index, np.arange(50))
    np.testing.assert_array_equal(panel.phases_ns, phases)
    np.testing.assert_array_equal(panel.end_ns - panel.start_ns, phases.sum(axis=2))
    np.testing.assert_array_equal(panel.start_ns[:, 1:], panel.end_ns[:, :-1])
    np.testing.assert_array_equal(panel.samples, samples)
    assert np.isnan(panel.tokens).all()
    assert panel.tokens.shape == (3, 50)
    np.testing.assert_array_equal(panel.flags, np.broadcast_to(flags, (3, 50)))
    assert (panel.probe_ns == 7).all()
    types = {a.dtype for a in (panel.index, panel.start_ns, panel.phases_ns, panel.flags)}
    assert types == {np.dtype(np.int64)}


def test_waits_hold_all_exposed_time_and_the_release(tmp_path: Path) -> None:
    phases = random_phases(2, 40)
    panel = load_panel(read_run(write_run(tmp_path, phases, num_collectives=4)))
    for rank, waits in enumerate(panel.waits):
        assert len(waits.key) == 160
        blocked = np.bincount(waits.step, weights=waits.end_ns - waits.wait_ns, minlength=40)
        np.testing.assert_allclose(blocked, phases[rank, :, EXPOSED])
        np.testing.assert_array_equal(waits.end_ns[3::4], panel.end_ns[rank])
        assert (np.diff(waits.wait_ns) >= 0).all()
        assert (waits.issue_ns <= waits.wait_ns).all()
        assert waits.world.all()


def test_a_samples_null_is_nan_in_its_step_only(tmp_path: Path) -> None:
    rows: Rows = {0: [step_row(0), (*step_row(1)[:10], None, 5, *step_row(1)[12:])]}
    panel = panel_of_steps(tmp_path, rows)
    np.testing.assert_array_equal(panel.samples, [[32, np.nan]])
    np.testing.assert_array_equal(panel.tokens, [[np.nan, 5]])


def test_ranks_are_aligned_on_the_steps_all_have(tmp_path: Path) -> None:
    rows: Rows = {
        0: [step_row(i) for i in range(10)],
        1: [step_row(i) for i in range(2, 8)],
        2: [step_row(i) for i in (0, 1, 2, 3, 5, 6, 7, 8)],
    }
    panel = panel_of_steps(tmp_path, rows)
    assert panel.index.tolist() == [2, 3, 5, 6, 7]
    assert panel.start_ns.tolist() == [[140, 210, 350, 420, 490]] * 3
    assert panel.warnings == (
        "the ranks recorded different numbers of steps (rank 1: 6, others up to 10); "
        "only the 5 that all of them have are compared",
    )


def test_as_many_but_other_steps_are_said_too(tmp_path: Path) -> None:
    rows: Rows = {0: [step_row(0), step_row(1)], 1: [step_row(1), step_row(2)]}
    panel = panel_of_steps(tmp_path, rows)
    assert panel.index.tolist() == [1]
    assert panel.warnings == (
        "the ranks recorded different steps; only the 1 of 2 in common are compared",
    )


def test_rows_out_of_order_or_repeated_are_put_right(tmp_path: Path) -> None:
    panel = panel_of_steps(tmp_path, {0: [step_row(i) for i in (2, 0, 1, 1)]})
    assert panel.index.tolist() == [0, 1, 2]
    assert panel.start_ns.tolist() == [[0, 70, 140]]


def test_a_rank_without_steps_is_left_out_and_named(tmp_path: Path) -> None:
    rows: Rows = {0: [step_row(0)], 1: [], 2: [step_row(0)]}
    panel = panel_of_steps(tmp_path, rows)
    assert panel.ranks == (0, 2)
    assert panel.warnings == ("rank 1 recorded no step and cannot be compared",)


def test_a_run_without_steps_is_an_empty_panel(tmp_path: Path) -> None:
    panel = panel_of_steps(tmp_path, {0: [], 1: []})
    assert panel.ranks == (0, 1)
    assert panel.phases_ns.shape == (2, 0, len(PHASES))
    assert (panel.num_steps, panel.warnings) == (0, ())


def test_phases_that_do_not_add_up_are_said(tmp_path: Path) -> None:
    row = list(step_row(0))
    row[3] += 1
    panel = panel_of_steps(tmp_path, {0: [step_row(0)], 1: [tuple(row)]})
    assert panel.warnings == ("the phases of some steps do not add up to the step (rank 1)",)


# -- waits: which collective is which ----------------------------------------------------------


def panel_of_collectives(tmp_path: Path, rows: Rows, **facts: Any) -> Panel:
    """Two steps on each rank, from 0 to 140 ns."""
    path = write_run(tmp_path, np.full((len(rows), 2, 7), 10), rank_facts=facts or None)
    overwrite(path, "steps", {rank: [step_row(0), step_row(1)] for rank in rows})
    return load_panel(overwrite(path, "collectives", rows))


def test_a_collective_has_the_same_key_on_all_ranks_and_no_other_has_it(tmp_path: Path) -> None:
    same = [
        collective_row(0, 5, group="0", source="python", wait_ns=1),
        collective_row(0, 6, group="0", source="python", wait_ns=2),
        collective_row(0, 5, group="1", source="python", wait_ns=3),
        collective_row(0, 5, group="0", source="functional", wait_ns=4),
        collective_row(1, 2**38, group="0", source="python", wait_ns=5),
    ]
    # Another order of appearance gives the file other codes for the same names.
    panel = panel_of_collectives(tmp_path, {0: same, 1: same[::-1]})
    first, second = panel.waits
    assert first.key.tolist() == second.key.tolist()
    assert len(set(first.key.tolist())) == 5
    assert first.wait_ns.tolist() == [1, 2, 3, 4, 5]


def test_only_waits_of_common_steps_count(tmp_path: Path) -> None:
    rows = [
        collective_row(-1, 0),  # before the first step
        collective_row(0, 1),
        collective_row(0, 2, wait_ns=None, end_ns=None, source="flight"),
        collective_row(0, None),  # a per-step sum
        collective_row(1, 3, end_ns=None),
        collective_row(7, 4),
        collective_row(0, 5, step=None),
    ]
    (waits,) = panel_of_collectives(tmp_path, {0: rows}).waits
    assert waits.step.tolist() == [0]
    assert waits.key.tolist()[0] >> 24 == 1


def test_a_wait_points_at_its_step_on_the_aligned_axis(tmp_path: Path) -> None:
    path = write_run(tmp_path, np.full((1, 2, 7), 10))
    overwrite(path, "steps", {0: [step_row(3), step_row(7)]})
    run = overwrite(path, "collectives", {0: [collective_row(7, 0), collective_row(3, 1)]})
    (waits,) = load_panel(run).waits
    assert waits.step.tolist() == [0, 1]
    assert (waits.key >> 24).tolist() == [1, 0]


def test_a_missing_or_late_arrival_counts_as_the_begin_of_the_wait(tmp_path: Path) -> None:
    rows = [
        collective_row(0, 0, issue_ns=None, wait_ns=40, end_ns=50),
        collective_row(0, 1, issue_ns=99, wait_ns=45, end_ns=44),
        collective_row(0, 2, issue_ns=10, wait_ns=60, end_ns=70),
    ]
    (waits,) = panel_of_collectives(tmp_path, {0: rows}).waits
    assert waits.issue_ns.tolist() == [40, 45, 10]
    assert waits.end_ns.tolist() == [50, 45, 70]


def test_world_is_told_from_the_groups_members(tmp_path: Path) -> None:
    rows = [collective_row(0, i, group=g) for i, g in enumerate(["all", "half", "unknown"])]
    groups = {"all": [0, 1], "half": [0], "odd": "x"}
    panel = panel_of_collectives(tmp_path, {0: rows, 1: rows}, groups=groups)
    assert panel.waits[1].world.tolist() == [True, False, True]


def test_a_missing_rank_does_not_make_a_part_the_world(tmp_path: Path) -> None:
    rows = [collective_row(0, 0, group="all"), collective_row(0, 1, group="half")]
    path = write_run(
        tmp_path,
        np.full((2, 2, 7), 10),
        run_facts={"world_size": 4},
        rank_facts={"groups": {"all": [0, 1, 2, 3], "half": [0, 1]}},
    )
    overwrite(path, "steps", {rank: [step_row(0), step_row(1)] for rank in (0, 1)})
    panel = load_panel(overwrite(path, "collectives", {0: rows, 1: rows}))
    assert panel.waits[0].world.tolist() == [True, False]


def test_a_record_without_collectives_has_no_waits(tmp_path: Path) -> None:
    panel = load_panel(read_run(write_run(tmp_path, random_phases(2, 3), num_collectives=0)))
    assert panel.waits == ()


# -- observations ------------------------------------------------------------------------------


def test_milestones_come_from_the_facts_and_else_from_the_rows(tmp_path: Path) -> None:
    anchor = f'{{"monotonic_ns": {START_NS}, "realtime_ns": {START_NS + 77}}}'
    path = write_run(
        tmp_path,
        np.full((1, 3, 7), 10**6),
        rank_facts={"first_step_ns": None, "last_step_ns": "later", "end_ns": None},
        events={0: [event_row(START_NS, "anchor", anchor), event_row(1, "anchor", "torn{")]},
    )
    (times,) = load_times(read_run(path))
    assert times.first_step_ns == START_NS
    assert times.last_step_ns == START_NS + 21 * 10**6
    assert times.end_ns is None
    assert times.start_ns == START_NS - 5 * 10**9
    assert times.to_realtime_ns == 77


def test_events_are_found_by_kind(tmp_path: Path) -> None:
    rows = [
        event_row(1, "gc"),
        event_row(2, "checkpoint", '{"file": "a.pt"}'),
        event_row(3, "epoch"),
    ]
    path = write_run(tmp_path, np.ones((2, 3, 7), np.int64), events={1: rows})
    run = read_run(path)
    found = load_events(run, "checkpoint", "epoch")
    assert [(e.rank, e.kind, e.time_ns, dict(e.detail)) for e in found] == [
        (1, "checkpoint", 2, {"file": "a.pt"}),
        (1, "epoch", 3, {}),
    ]
    assert load_events(run, "nothing") == ()


def test_memory_keeps_its_peak_however_long_the_run(tmp_path: Path) -> None:
    rows = [
        gauge_row(START_NS + i * 10**9, 1_000 + (50_000 if i == 4_321 else 0)) for i in range(9_000)
    ]
    path = write_run(tmp_path, np.ones((2, 3, 7), np.int64), gauges={0: rows})
    run = read_run(path)
    first, second = memory_series(run)
    assert max(first.bytes) == 51_000
    assert len(first.bytes) == len(first.seconds) <= 400
    assert first.seconds[0] == pytest.approx(5.0)  # since the rank's start
    assert second.bytes[0] == 2**30
    assert peak_memory(run) == {0: 51_000, 1: 2**30}


def test_a_rank_without_gauges_has_no_memory(tmp_path: Path) -> None:
    path = write_run(tmp_path, np.ones((1, 3, 7), np.int64))
    run = overwrite(path, "gauges", {0: []})
    assert (memory_series(run), peak_memory(run)) == ((), {})


def test_device_memory_is_preferred_where_there_is_a_device(tmp_path: Path) -> None:
    row = (START_NS, 300, 400, 350, 10**9, None, None, None, None, None, 5, 6)
    run = read_run(write_run(tmp_path, np.ones((1, 3, 7), np.int64), gauges={0: [row]}))
    assert memory_series(run)[0].bytes == (300,)
    assert peak_memory(run) == {0: 350}


def test_arrays_are_the_callers_own(tmp_path: Path) -> None:
    """Memory of Arrow's is read-only; a detector that sorts in place must not meet it."""
    panel = load_panel(read_run(write_run(tmp_path, random_phases(2, 5), num_collectives=2)))
    arrays = [panel.start_ns, panel.phases_ns, panel.samples, panel.waits[0].end_ns]
    assert all(isinstance(a, np.ndarray) and a.flags.writeable for a in arrays)
