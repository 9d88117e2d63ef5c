"""Reading runs in every state they are left in; what is missing becomes a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diag.errors import RecordError
from diag.record import schema
from diag.record.encode import MessageEncoder
from diag.record.heartbeat import HeartbeatWriter
from diag.record.reader import read_run
from diag.record.store import RunDir
from diag.record.writer import RankWriter
from helpers.records import released_together, write_rows, write_run
from helpers.rows import event_row, step_row


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """Three ranks, ten steps, two collectives each; cleanly ended."""
    local = np.arange(3 * 10 * 7).reshape(3, 10, 7) * 1_000
    return write_run(tmp_path, released_together(local, 500), num_collectives=2)


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_run_is_read_without_remarks(run_path: Path) -> None:
    run = read_run(run_path)
    assert (run.warnings, run.lost, run.running) == ((), (), False)
    assert (run.name, run.world_size, list(run.ranks)) == ("synthetic", 3, [0, 1, 2])
    rank = run.ranks[2]
    assert (rank.rank, rank.restart, rank.closed, rank.facts["rank"]) == (2, 0, True, 2)
    assert rank.steps.schema.equals(schema.STEPS)
    assert rank.collectives.schema.equals(schema.COLLECTIVES)
    assert (rank.steps.num_rows, rank.collectives.num_rows) == (10, 20)
    assert rank.gauges.num_rows >= 1


def test_reading_changes_nothing(run_path: Path) -> None:
    (run_path / "ranks" / "00001-0" / "steps.arrows").write_bytes(b"damaged")

    def state() -> dict[Path, tuple[int, bytes]]:
        files = [p for p in run_path.rglob("*") if p.is_file()]
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    read_run(run_path)
    assert state() == before


def test_a_missing_rank_is_said(run_path: Path) -> None:
    shutil.rmtree(run_path / "ranks" / "00001-0")
    run = read_run(run_path)
    assert list(run.ranks) == [0, 2]
    assert run.lost == ("rank 1 left no record",)


@pytest.mark.parametrize(
    ("world_size", "sentence"),
    [
        (5, "ranks 3 and 4 left no record"),
        (64, "61 ranks (the first is 3) left no record"),
        (10**18, f"{10**18 - 3} ranks (the first is 3) left no record"),
    ],
)
def test_many_missing_ranks_are_one_sentence(
    run_path: Path, world_size: int, sentence: str
) -> None:
    change_json(run_path / "run.json", world_size=world_size)
    assert read_run(run_path).lost == (sentence,)


def test_without_run_json_the_ranks_are_still_read(run_path: Path) -> None:
    (run_path / "run.json").unlink()
    run = read_run(run_path)
    assert run.warnings == ("run.json is missing: what was launched, and how it ended, is unknown",)
    assert (dict(run.facts), run.world_size, len(run.ranks)) == ({}, 3, 3)


@pytest.mark.parametrize("text", ["", "{", '{"name": ', "[]", "null", "\x00\x00", "\xff"])
def test_a_damaged_run_json_is_a_warning(run_path: Path, text: str) -> None:
    (run_path / "run.json").write_bytes(text.encode("latin-1"))
    run = read_run(run_path)
    assert "run.json is damaged" in run.warnings[0]
    assert len(run.ranks) == 3


def test_a_damaged_rank_json_loses_its_facts_only(run_path: Path) -> None:
    (run_path / "ranks" / "00001-0" / "rank.json").write_text('{"ran')
    (run_path / "ranks" / "00002-0" / "rank.json").unlink()
    run = read_run(run_path)
    assert run.lost == ("rank 1: rank.json is damaged", "rank 2: rank.json is missing")
    assert [r.steps.num_rows for r in run.ranks.values()] == [10, 10, 10]


@pytest.mark.parametrize("where", ["run.json", "ranks/00001-0/rank.json"])
def test_a_newer_schema_is_refused_naming_both_versions(run_path: Path, where: str) -> None:
    change_json(run_path / where, schema={"major": schema.SCHEMA_MAJOR + 1, "minor": 4})
    match = rf"schema {schema.SCHEMA_MAJOR + 1}\.4; this diag reads up to {schema.SCHEMA_MAJOR}\."
    with pytest.raises(RecordError, match=match) as caught:
        read_run(run_path)
    assert caught.value.slug == "newer-record"
    assert "upgrade" in caught.value.hint


def test_a_newer_minor_is_read_and_its_new_column_ignored(run_path: Path) -> None:
    change_json(run_path / "run.json", schema={"major": schema.SCHEMA_MAJOR, "minor": 99})
    wider = schema.GAUGES.append(pa.field("novelty", pa.int64()))
    batch = pa.RecordBatch.from_pylist([{"time_ns": 5, "novelty": 6}], schema=wider)
    encoder = MessageEncoder(wider)
    (run_path / "ranks" / "00000-0" / "gauges.arrows").write_bytes(
        encoder.encode(batch, 0, 1) + encoder.finish()
    )
    run = read_run(run_path)
    assert run.lost == ()
    assert run.ranks[0].gauges.schema.equals(schema.GAUGES)
    assert run.ranks[0].gauges["time_ns"].to_pylist() == [5]


def test_an_older_minor_is_read_and_its_missing_column_is_null(run_path: Path) -> None:
    narrow = pa.schema([f for f in schema.STEPS if f.name != "tokens"])
    batch = pa.RecordBatch.from_pylist([{"index": 0, "start_ns": 1, "end_ns": 2}], schema=narrow)
    encoder = MessageEncoder(narrow)
    (run_path / "ranks" / "00000-0" / "steps.arrows").write_bytes(
        encoder.encode(batch, 0, 1) + encoder.finish()
    )
    steps = read_run(run_path).ranks[0].steps
    assert steps.schema.equals(schema.STEPS)
    assert steps["tokens"].to_pylist() == [None]
    assert steps["end_ns"].to_pylist() == [2]


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no rank's record") as caught:
        read_run(tmp_path)
    assert caught.value.slug == "empty-run"


def test_a_run_that_ended_before_any_rank_recorded_says_so(run_path: Path) -> None:
    shutil.rmtree(run_path / "ranks")
    with pytest.raises(RecordError) as caught:
        read_run(run_path)
    assert "the run ended (script) before any rank recorded" in caught.value.hint


def test_a_run_without_probes_says_that_it_has_no_record(run_path: Path) -> None:
    shutil.rmtree(run_path / "ranks")
    RunDir(run_path).update_run_json(probes=False)
    with pytest.raises(RecordError) as caught:
        read_run(run_path)
    assert "it ran with its probes off" in caught.value.hint


@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_what_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    with pytest.raises(RecordError, match="is not a directory"):
        read_run(path)


def test_a_directory_that_may_not_be_read_is_an_error_with_the_reason(
    run_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RecordError, match=r"cannot list .*: Permission denied"):
        read_run(run_path)


def test_files_that_are_none_of_ours_are_ignored(run_path: Path) -> None:
    (run_path / "ranks" / "notes.txt").write_text("mine")
    (run_path / "ranks" / "00001-0" / "steps.arrows.bak").write_text("mine")
    (run_path / "ranks" / "rank1").mkdir()
    assert read_run(run_path).lost == ()


def test_a_stream_that_is_not_there_is_lost(run_path: Path) -> None:
    (run_path / "ranks" / "00001-0" / "collectives.arrows").unlink()
    run = read_run(run_path)
    assert run.ranks[1].collectives.num_rows == 0
    assert "rank 1: collectives were not recorded" in run.lost


def test_the_same_loss_on_many_ranks_is_one_sentence(tmp_path: Path) -> None:
    path = write_run(tmp_path, np.ones((12, 3, 7), np.int64))
    for rank in range(12):
        (path / "ranks" / f"{rank:05d}-0" / "gauges.arrows").unlink()
    lost = read_run(path).lost
    assert "12 ranks (0 to 11): gauges were not recorded" in lost
    assert len(lost) == 2  # the other one: their records were not closed


def test_only_the_last_life_is_read(tmp_path: Path) -> None:
    path = write_run(tmp_path, np.ones((2, 5, 7), np.int64))
    later = write_run(tmp_path, np.ones((2, 3, 7), np.int64), name="later", restart=2)
    for directory in (later / "ranks").iterdir():
        shutil.move(directory, path / "ranks" / directory.name)
    run = read_run(path)
    assert [(r.restart, r.steps.num_rows) for r in run.ranks.values()] == [(2, 3), (2, 3)]
    assert "the run was restarted 2 times; only its last life is read" in run.warnings


def test_what_the_rank_noted_as_failed_is_said(tmp_path: Path) -> None:
    path = write_run(
        tmp_path,
        np.ones((2, 5, 7), np.int64),
        rank_facts={"probe_failures": {"loader": 3, "gauge": 1, "quiet": 0, "odd": "x"}},
        events={
            1: [
                event_row(1, "probe_failure", '{"where": "record", "count": 2, "lost_rows": 0}'),
                event_row(
                    2,
                    "probe_failure",
                    '{"where": "record", "count": 7, "lost_rows": 40, "reason": "OSError: full"}',
                ),
                event_row(3, "probe_failure", "not json"),
                event_row(4, "probe_failure", "[1]"),
            ]
        },
    )
    assert read_run(path).lost == (
        "ranks 0 and 1: the probe 'loader' failed 3 times",
        "ranks 0 and 1: the probe 'gauge' failed once",
        "rank 1: the probe 'record' failed 7 times",
        "rank 1: 40 rows could not be written (OSError: full)",
    )


def test_a_gap_between_blocks_and_journal_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDir(tmp_path).rank_dir(0)
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_ROWS", 8)
    writer = RankWriter(directory)
    for index in range(8):
        writer.append_step(step_row(index))
    writer.flush()
    writer.append_step(step_row(8))
    writer.flush()
    block = directory / "steps.arrows"
    block.write_bytes(block.read_bytes()[:-1])
    run = read_run(tmp_path)
    assert run.ranks[0].steps["index"].to_pylist() == [8]
    assert "rank 0: 8 rows are missing in the middle of its steps" in run.lost
    assert "rank 0: the end of its steps is damaged and was skipped" in run.lost
    writer.close()


def journal_line(content: Any) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_a_journal_of_another_minor_is_read_by_its_columns_names(tmp_path: Path) -> None:
    directory = RunDir(tmp_path).rank_dir(0)
    directory.mkdir(parents=True)
    columns = {"steps": ["novelty", "end_ns", "index"], "novelties": ["a"]}
    (directory / "tail.jsonl").write_bytes(
        journal_line({"columns": columns})
        + journal_line({"steps": [0, [["x", 9, 0], ["y", 19, 1]]], "novelties": [0, [[1]]]})
    )
    steps = read_run(tmp_path).ranks[0].steps
    assert steps["index"].to_pylist() == [0, 1]
    assert steps["end_ns"].to_pylist() == [9, 19]
    assert steps["start_ns"].to_pylist() == [None, None]


@pytest.mark.parametrize("content", [{}, {"columns": 5}, {"columns": {"steps": 7}}, {"steps": 1}])
def test_a_journal_of_another_make_is_skipped(tmp_path: Path, content: Any) -> None:
    directory = RunDir(tmp_path).rank_dir(0)
    directory.mkdir(parents=True)
    (directory / "tail.jsonl").write_bytes(journal_line(content) * 2)
    run = read_run(tmp_path)
    assert run.ranks[0].steps.num_rows == 0
    assert "rank 0: the end of its journal is damaged and was skipped" in run.lost


# -- still running? ---------------------------------------------------------------------------

STILL = "the run is still going on; this is its state so far"
KILLED = "the launcher was killed: how the run ended is unknown"


@pytest.fixture
def open_run(run_path: Path) -> Path:
    """The same, as if the launcher had not completed run.json."""
    now = datetime.now(UTC).isoformat()
    change_json(run_path / "run.json", ended_by=None, launcher_pid=os.getpid(), created=now)
    return run_path


def test_a_run_whose_launcher_lives_is_still_going_on(open_run: Path) -> None:
    run = read_run(open_run)
    assert run.running
    assert run.warnings == (STILL,)


def test_while_it_runs_an_open_record_is_no_loss(open_run: Path) -> None:
    shutil.rmtree(open_run / "ranks" / "00000-0")
    writer = RankWriter(RunDir(open_run).rank_dir(0))
    writer.write_rank_json({"rank": 0})
    writer.append_step(step_row(0))
    writer.flush()
    assert read_run(open_run).lost == ()
    writer.close()


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_launcher_is_gone_was_killed(open_run: Path, dead_pid: int) -> None:
    change_json(open_run / "run.json", launcher_pid=dead_pid)
    run = read_run(open_run)
    assert not run.running
    assert run.warnings == (KILLED,)


def test_another_process_under_the_launchers_number_is_not_it(open_run: Path) -> None:
    earlier = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    change_json(open_run / "run.json", created=earlier)
    assert read_run(open_run).warnings == (KILLED,)


def test_a_fresh_heartbeat_means_running_without_the_launcher(
    open_run: Path, dead_pid: int
) -> None:
    change_json(open_run / "run.json", launcher_pid=dead_pid)
    HeartbeatWriter(open_run / "ranks" / "00001-0" / "heartbeat")
    assert read_run(open_run).warnings == (STILL,)


def test_heartbeats_of_another_machine_say_that_it_does_not_run_here(
    open_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diag.record.heartbeat.boot_id", lambda: "another-machine")
    HeartbeatWriter(open_run / "ranks" / "00001-0" / "heartbeat")
    assert read_run(open_run).warnings == (KILLED,)


@pytest.mark.parametrize("pid", [None, -1, 0, "12", 2**70, True])
def test_a_senseless_launcher_pid_does_not_matter(open_run: Path, pid: Any) -> None:
    change_json(open_run / "run.json", launcher_pid=pid, created="yesterday")
    assert read_run(open_run).warnings == (KILLED,)


def test_the_record_needs_no_torch() -> None:
    modules = "store, writer, heartbeat, reader, liveness"
    code = f"from diag.record import {modules}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_rows_of_a_rank_written_whole_are_read_as_written(tmp_path: Path) -> None:
    directory = RunDir(tmp_path).rank_dir(0)
    directory.mkdir(parents=True)
    write_rows(directory, "steps", [step_row(i) for i in range(3)])
    run = read_run(tmp_path)
    assert [tuple(row.values()) for row in run.ranks[0].steps.to_pylist()] == [
        step_row(i) for i in range(3)
    ]
