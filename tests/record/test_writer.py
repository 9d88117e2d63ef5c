"""The recorder: what it writes, what it costs its host, and what it survives."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diag.errors import DiagError
from diag.record.reader import read_run
from diag.record.store import RunDir
from diag.record.streamreader import read_streams
from diag.record.writer import RankWriter
from helpers.rows import collective_row, event_row, gauge_row, step_row

TESTS = Path(__file__).resolve().parents[1]


def rows_of(directory: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_streams(directory).tables[name].to_pylist()
    return rows


def of_kind(directory: Path, kind: str) -> list[dict[str, Any]]:
    found = [row for row in rows_of(directory, "events") if row["kind"] == kind]
    return [json.loads(row["detail"]) for row in found]


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path / "rank")
    writer.append_step(step_row(0))
    writer.append_collective(collective_row(0, 7, wait_ns=None, end_ns=None, site=None))
    writer.append_gauge(gauge_row(5))
    writer.append_event(event_row(6, "gc", '{"generation": 2}'))
    writer.close()
    directory = tmp_path / "rank"
    assert [tuple(row.values()) for row in rows_of(directory, "steps")] == [step_row(0)]
    (collective,) = rows_of(directory, "collectives")
    assert collective["wait_ns"] is None
    assert collective["site"] is None
    assert (collective["group"], collective["seq"], collective["op"]) == ("ddp:0", 7, "all_reduce")
    assert rows_of(directory, "gauges")[0]["rss_bytes"] == 2**20
    assert of_kind(directory, "gc") == [{"generation": 2}]
    assert writer.failures == 0


def test_files_are_private(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path / "ranks" / "00000-0")
    writer.write_rank_json({"rank": 0})
    writer.flush()
    directory = writer.directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()} == {0o600}
    writer.close()


def test_every_flush_ties_the_monotonic_clock_to_the_wall_clock(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    writer.flush()
    writer.close()
    anchors = of_kind(tmp_path, "anchor")
    assert len(anchors) == 2
    assert abs(anchors[-1]["realtime_ns"] - time.time_ns()) < 60 * 10**9
    assert abs(anchors[-1]["monotonic_ns"] - time.monotonic_ns()) < 60 * 10**9


def test_names_are_kept_across_flushes_that_bring_new_ones(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    expected = []
    for seq in range(300):
        writer.append_collective(collective_row(0, seq, site=f"train.py:{seq // 2}"))
        expected.append(f"train.py:{seq // 2}")
        if seq % 7 == 0:
            writer.flush()
    writer.flush()
    assert [row["site"] for row in rows_of(tmp_path, "collectives")] == expected
    writer.close()
    assert [row["site"] for row in rows_of(tmp_path, "collectives")] == expected


def test_more_names_than_the_column_can_number_share_one(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    for number in range(130):  # `kind` is numbered by an int8
        writer.append_event(event_row(number, f"kind {number}"))
        writer.flush()
    writer.close()
    assert writer.failures == 0
    kinds = [row["kind"] for row in rows_of(tmp_path, "events") if row["kind"] != "anchor"]
    assert kinds[:126] == [f"kind {n}" for n in range(126)]  # the 127th name is "anchor"
    assert set(kinds[126:]) == {"(others)"}
    assert len(kinds) == 130


def test_appends_from_many_threads_during_flushes_lose_nothing(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    append = writer.append_collective  # kept, as a probe would
    per_thread = 5_000

    def train(offset: int) -> None:
        for seq in range(offset, offset + per_thread):
            append(collective_row(0, seq))

    threads = [threading.Thread(target=train, args=(i * per_thread,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        writer.flush()
    for thread in threads:
        thread.join()
    writer.close()
    seqs = sorted(row["seq"] for row in rows_of(tmp_path, "collectives"))
    assert seqs == list(range(4 * per_thread))


def test_blocks_replace_the_journal_and_hold_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_ROWS", 50)
    writer = RankWriter(tmp_path)
    journal = tmp_path / "tail.jsonl"
    sizes = []
    for index in range(130):
        writer.append_step(step_row(index))
        if index % 10 == 9:
            writer.flush()
            sizes.append(journal.stat().st_size)
            assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(index + 1))
    assert min(sizes) == 0  # emptied
    assert max(sizes) < 8_000
    assert (tmp_path / "steps.arrows").stat().st_size > 1_000
    writer.close()
    assert not journal.exists()
    read = read_streams(tmp_path)
    assert (read.closed, read.problems) == (True, ())
    assert read.tables["steps"]["index"].to_pylist() == list(range(130))


def test_blocks_are_written_after_a_while_however_few_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RankWriter(tmp_path)
    writer.append_step(step_row(0))
    writer.flush()
    assert (tmp_path / "steps.arrows").stat().st_size == 0
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_AGE_S", 0.0)
    writer.flush()
    assert (tmp_path / "steps.arrows").stat().st_size > 0
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == [0]
    writer.close()


def test_a_journal_left_behind_after_its_blocks_were_written_is_not_read_twice(
    tmp_path: Path,
) -> None:
    writer = RankWriter(tmp_path)
    for index in range(20):
        writer.append_step(step_row(index))
    writer.flush()
    journal = tmp_path / "tail.jsonl"
    kept = journal.read_bytes()
    writer.close()
    journal.write_bytes(kept)  # as if the process had died between the two writes
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(20))


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    writer.append_step(tuple(None if v is None else np.int64(v) for v in step_row(3)))
    writer.append_gauge((5, 0, 0, 1, 1, np.float32(0.5), float("nan"), None, None, None, 5, 6))
    writer.flush()
    live = rows_of(tmp_path, "steps"), rows_of(tmp_path, "gauges")[0]["gpu_utilisation"]
    writer.close()
    assert live == (rows_of(tmp_path, "steps"), 0.5)
    assert [tuple(row.values()) for row in live[0]] == [step_row(3)]
    assert writer.failures == 0


def test_the_thread_flushes_by_itself(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    writer.start()
    writer.start()
    writer.append_step(step_row(0))
    deadline = time.monotonic() + 10
    while not rows_of(tmp_path, "steps") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(rows_of(tmp_path, "steps")) == 1
    assert sum(t.name == "diag-record" for t in threading.enumerate()) == 1
    writer.close()
    assert not any(t.name == "diag-record" for t in threading.enumerate())


def test_the_cost_of_flushing_is_measured(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    for seq in range(20_000):
        writer.append_collective(collective_row(0, seq))
    before = time.thread_time_ns()
    writer.flush()
    spent = time.thread_time_ns() - before
    assert 0.8 * spent <= writer.flush_cost_ns <= spent
    assert writer.flush_wall_ns > 0
    assert writer.flushes == 1
    writer.close()


def test_appending_costs_the_training_next_to_nothing(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    row = collective_row(0, 0)
    append, count = writer.append_collective, 20_000
    took = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(count):
            append(row)
        took.append((time.perf_counter_ns() - start) / count)
    assert min(took) < 500  # ns; it is some 20 ns on a quiet machine
    writer.close()


def test_closing_twice_and_flushing_after_it_do_nothing(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    writer.close()
    sizes = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    writer.close()
    assert writer.flush() is False
    writer.start()
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == sizes


def test_rank_json_carries_the_schema_and_is_replaced_whole(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    assert writer.write_rank_json({"rank": 0, "steps": 1})
    assert writer.write_rank_json({"rank": 0, "steps": 2})
    assert json.loads((tmp_path / "rank.json").read_text()) == {
        "schema": {"major": 1, "minor": 0},
        "rank": 0,
        "steps": 2,
    }
    assert writer.write_rank_json({"bad": float("inf")}) is False
    assert writer.failures == 1
    writer.close()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiagError, match="cannot record into") as caught:
        RankWriter(tmp_path / "file" / "rank")
    assert caught.value.slug == "record-not-writable"


def test_a_record_is_never_written_over(tmp_path: Path) -> None:
    RankWriter(tmp_path).close()
    with pytest.raises(DiagError, match="File exists"):
        RankWriter(tmp_path)


# -- what it survives -----------------------------------------------------------------------


class FullDisk:
    """os.write that takes `room` bytes and then refuses, until more room is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr("diag.record.appendfile.os.write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 100, 1_000, 1_777, 5_000])
def test_a_disk_that_was_full_for_a_while_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_ROWS", 40)
    writer = RankWriter(tmp_path)
    disk = FullDisk(monkeypatch, room)
    for index in range(100):
        writer.append_step(step_row(index))
        writer.append_collective(collective_row(index, index))
        if index % 5 == 0:
            writer.flush()
    assert writer.failures > 0
    assert "No space left" in writer.last_failure
    part = [row["index"] for row in rows_of(tmp_path, "steps")]
    assert part == list(range(len(part)))  # what is there can be read, torn end and all
    disk.room = 2**30
    writer.close()
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(100))
    assert [row["seq"] for row in rows_of(tmp_path, "collectives")] == list(range(100))
    assert writer.lost_rows == 0
    assert of_kind(tmp_path, "probe_failure")[-1]["where"] == "record"


def test_a_disk_that_stays_full_takes_bounded_memory_and_counts_what_it_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diag.record.appendfile._MAX_WAITING", 20_000)
    writer = RankWriter(tmp_path)
    disk = FullDisk(monkeypatch, 3_000)
    for index in range(2_000):
        writer.append_step(step_row(index))
        if index % 10 == 9:
            writer.flush()
    refused = writer.lost_rows
    assert refused > 1_000
    disk.room = 2**30
    writer.flush()
    writer.append_step(step_row(9_999))
    writer.close()
    indices = [row["index"] for row in rows_of(tmp_path, "steps")]
    assert indices[-1] == 9_999
    assert indices[:-1] == list(range(len(indices) - 1))
    reported = of_kind(tmp_path, "probe_failure")[-1]
    assert reported["lost_rows"] >= refused


def test_a_record_deleted_under_it_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path / "rank")
    writer.append_step(step_row(0))
    assert writer.flush()
    shutil.rmtree(tmp_path / "rank")
    writer.append_step(step_row(1))
    assert writer.flush() is False
    assert writer.failures > 0
    assert "deleted" in writer.last_failure
    assert writer.lost_rows >= 1
    assert writer.write_rank_json({}) is False
    writer.close()


@pytest.mark.parametrize("bad", [(1, "two"), (), 5 * ("x",), [[1]], object(), 2**80])
def test_a_row_that_does_not_fit_is_counted_and_the_others_are_kept(
    tmp_path: Path, bad: Any
) -> None:
    writer = RankWriter(tmp_path)
    for index in range(40):
        writer.append_step(step_row(index))
        if index == 17:
            row = bad if isinstance(bad, (tuple, list)) else (bad, *step_row(0)[1:])
            writer.append_step(row)
    writer.flush()
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(40))
    writer.close()
    assert (writer.failures, writer.lost_rows) == (1, 1)
    assert "1 rows did not fit" in writer.last_failure
    read = read_streams(tmp_path)
    assert read.tables["steps"]["index"].to_pylist() == list(range(40))
    assert (read.problems, read.closed) == ((), True)


def test_a_failure_is_reported_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_ROWS", 1)
    writer = RankWriter(tmp_path)
    writer.append_step((1, "two"))
    assert writer.flush() is False
    assert writer.flush() is True
    writer.close()
    (reported,) = of_kind(tmp_path, "probe_failure")
    assert (reported["where"], reported["count"], reported["lost_rows"]) == ("record", 1, 1)


def test_a_name_that_is_no_text_does_not_spoil_its_column(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    for seq, site in enumerate(["new.py:1", 12, "new.py:1", "new.py:2"]):
        writer.append_collective(collective_row(0, seq, site=site))
    writer.close()
    sites = [row["site"] for row in rows_of(tmp_path, "collectives")]
    assert sites == ["new.py:1", "new.py:1", "new.py:2"]
    assert writer.lost_rows == 1


def test_in_a_forked_child_it_is_inert(tmp_path: Path) -> None:
    writer = RankWriter(tmp_path)
    writer.start()
    append_step = writer.append_step
    append_step(step_row(0))
    child = os.fork()
    if child == 0:  # pragma: no cover
        append_step(step_row(100))
        writer.append_step(step_row(101))
        writer.write_rank_json({"rank": "child"})
        flushed = writer.flush()
        writer.close()
        os._exit(int(flushed))
    assert os.waitpid(child, 0)[1] == 0
    writer.append_step(step_row(1))
    writer.close()
    read = read_streams(tmp_path)
    assert read.tables["steps"]["index"].to_pylist() == [0, 1]
    assert read.problems == ()
    assert not (tmp_path / "rank.json").exists()


_VICTIM = """
import sys, time
from pathlib import Path
from helpers.rows import step_row
from diag.record.writer import RankWriter
writer = RankWriter(Path(sys.argv[1]))
writer.start()
index = 0
while True:
    writer.append_step(step_row(index))
    print(index, time.monotonic(), flush=True)
    index += 1
    time.sleep(0.01)
"""


def test_a_sigkill_loses_at_most_the_last_second(tmp_path: Path) -> None:
    rank = RunDir(tmp_path).rank_dir(0)
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(rank)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    assert victim.stdout is not None
    appended = [victim.stdout.readline() for _ in range(150)]
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    appended += victim.stdout.readlines()
    victim.wait()
    run = read_run(tmp_path)
    recorded = run.ranks[0].steps.num_rows
    times = [float(line.split()[1]) for line in appended if line.count(" ") == 1]
    assert killed - times[recorded - 1] < 1.0
    assert any("ended before it closed its record" in sentence for sentence in run.lost)


def test_a_process_that_forgets_to_close_still_closes(tmp_path: Path) -> None:
    script = _VICTIM.replace("while True", "while index < 3")
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rank")],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    read = read_streams(tmp_path / "rank")
    assert read.closed
    assert read.tables["steps"].num_rows == 3


def test_an_unfinished_block_is_completed_before_the_journal_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RankWriter(tmp_path)
    for index in range(100):
        writer.append_step(step_row(index))
    writer.flush()
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_AGE_S", 0.0)
    disk = FullDisk(monkeypatch, 2_500)  # enough for the journal, not for all blocks
    assert writer.flush() is False
    assert (tmp_path / "tail.jsonl").stat().st_size > 0
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(100))
    disk.room = 2**30
    writer.append_step(step_row(100))
    writer.flush()
    assert (tmp_path / "tail.jsonl").stat().st_size == 0
    writer.close()
    assert [row["index"] for row in rows_of(tmp_path, "steps")] == list(range(101))
