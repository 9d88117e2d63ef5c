"""Arrivals from a flight recorder's ring: new ones once, overwritten ones counted, seldom read."""

from __future__ import annotations

import json
import time
from typing import Any

from diag.probes.flight import EVERY_STEPS, FIRST_SWEEP_STEP, FlightSweeper, entry_bytes
from diag.record.schema import COLLECTIVES, StepFlag
from helpers.fakes import Rank


def entry(record_id: int, created_ns: int, **changes: Any) -> dict[str, Any]:
    return {
        "record_id": record_id, "collective_seq_id": record_id + 1, "is_p2p": False,
        "process_group": ["0", "default_pg"], "profiling_name": "gloo:all_reduce",
        "input_sizes": [[20, 3], [4]], "input_dtypes": ["Float", "BFloat16"],
        "time_created_ns": created_ns,
    } | changes  # fmt: skip


class Ring:
    def __init__(self) -> None:
        self.rank = Rank().wrapped()
        self.rows: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []
        self.dumps = 0
        self.sweeper = FlightSweeper(self.rank.tracker, self.keep, self.dump)

    def keep(self, row: tuple[object, ...]) -> None:
        self.rows.append(dict(zip(COLLECTIVES.names, row, strict=True)))

    def dump(self) -> str:
        self.dumps += 1
        return json.dumps({"entries": self.entries})

    def sweep(self) -> None:
        self.rank.tracker.steps = max(self.rank.tracker.steps, FIRST_SWEEP_STEP)
        self.sweeper._next_s = self.sweeper._next_step = 0
        self.sweeper.sweep()


def test_an_entry_becomes_a_row_of_the_step_it_arrived_in() -> None:
    ring = Ring()
    ring.rank.tracker.steps = 2
    ring.sweeper.note_cut()
    ring.sweeper.note_cut()
    first_cut = time.time_ns()
    time.sleep(0.002)
    ring.sweeper.note_cut()
    ring.entries = [entry(0, first_cut), entry(1, time.time_ns())]
    ring.sweep()
    assert [row["step"] for row in ring.rows] == [1, 2]
    row = ring.rows[0]
    assert (row["group"], row["op"], row["source"]) == ("flight:0", "all_reduce", "flight")
    assert row["bytes"] == 20 * 3 * 4 + 4 * 2
    assert row["wait_ns"] is row["end_ns"] is None


def test_what_was_read_is_not_read_again_and_what_was_overwritten_is_counted() -> None:
    ring = Ring()
    now = time.time_ns()
    ring.entries = [entry(i, now) for i in range(3)]
    ring.sweep()
    ring.entries = [entry(i, now) for i in (2, 7, 8)]
    ring.sweep()
    assert [row["seq"] for row in ring.rows] == [1, 2, 3, 8, 9]
    assert ring.sweeper.missed == 4


def test_point_to_point_is_left_out() -> None:
    ring = Ring()
    ring.entries = [entry(0, time.time_ns(), is_p2p=True)]
    ring.sweep()
    assert ring.rows == []


def test_a_sweep_flags_its_step_and_the_next_one_waits() -> None:
    ring = Ring()
    ring.sweep()
    assert ring.rank.tracker.draft.flags == StepFlag.PROFILED
    ring.rank.tracker.steps += EVERY_STEPS - 1
    ring.sweeper._next_s = 0.0
    ring.sweeper.sweep()
    assert ring.dumps == 1
    ring.rank.tracker.steps += 1
    ring.sweeper.sweep()
    assert ring.dumps == 2
    ring.rank.tracker.steps += EVERY_STEPS
    ring.sweeper.sweep()  # a minute has not passed
    assert ring.dumps == 2


def test_nothing_is_read_before_the_steps_begin_and_all_of_it_when_they_are_over() -> None:
    ring = Ring()
    ring.entries = [entry(i, time.time_ns()) for i in range(3)]
    ring.sweeper.sweep()
    assert ring.dumps == 0
    ring.sweeper.last_sweep()
    assert len(ring.rows) == 3
    assert ring.rank.tracker.draft.flags == StepFlag.NONE


def test_a_build_without_a_recorder_is_asked_once() -> None:
    ring = Ring()
    ring.sweeper.dump = lambda: None
    ring.sweep()
    assert ring.sweeper._next_s == float("inf")


def test_unknown_dtypes_count_no_bytes() -> None:
    assert entry_bytes({"input_sizes": [[8]], "input_dtypes": ["Float9"]}) == (0, "float9")
