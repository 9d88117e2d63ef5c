"""Damaged files: cut at every byte, filled with zeros or noise. Nothing false is ever read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diag.errors import RecordError
from diag.record.heartbeat import HeartbeatWriter
from diag.record.reader import read_run
from diag.record.schema import STREAMS
from diag.record.streamreader import read_stream
from diag.record.writer import RankWriter
from helpers.records import write_run
from helpers.rows import collective_row, gauge_row, step_row

TESTS = Path(__file__).resolve().parents[1]
_BLOCK_AT = 20
_STEPS = 36


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank's directory as a SIGKILL leaves it: a block and a tail of several flushes each."""
    directory = tmp_path_factory.mktemp("killed") / "live"
    writer = RankWriter(directory)
    for step in range(_STEPS):
        writer.append_collective(collective_row(step, step, site=f"bucket {step % 11}"))
        writer.append_collective(collective_row(step, step, wait_ns=None, end_ns=None))
        writer.append_gauge(gauge_row(step))
        writer.append_step(step_row(step))
        if step % 6 == 5:
            writer.flush()
        if step == _BLOCK_AT:
            for stream in writer._streams.values():
                stream._compact(1, 0.0)
    writer.flush()
    copy = directory.with_name("killed")
    shutil.copytree(directory, copy)
    writer.close()
    return copy


def indices(directory: Path) -> list[int]:
    found: list[int] = read_stream(directory, "steps").table["index"].to_pylist()
    return found


def test_the_undamaged_rank_is_whole(killed: Path) -> None:
    assert indices(killed) == list(range(_STEPS))
    assert all(read_stream(killed, name).problems == () for name in STREAMS)


def test_a_tail_cut_at_any_byte_gives_the_rows_before_the_cut(killed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    tail = copy / "steps.tail.arrows"
    whole = tail.read_bytes()
    counts = []
    for size in range(len(whole)):
        tail.write_bytes(whole[:size])
        found = indices(copy)
        assert found == list(range(len(found)))
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 18  # what the block holds: three flushes
    assert counts[-1] == _STEPS - 6  # but the flush that is cut


def test_a_block_cut_at_any_byte_leaves_the_tail(killed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    block = copy / "steps.arrows"
    whole = block.read_bytes()
    for size in range(len(whole)):
        block.write_bytes(whole[:size])
        assert indices(copy) == list(range(18, _STEPS))
        problems = read_stream(copy, "steps").problems
        assert "18 rows are missing in the middle of its steps" in problems


def test_a_cut_inside_a_message_is_said(killed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    tail = copy / "steps.tail.arrows"
    tail.write_bytes(tail.read_bytes()[:-9])
    assert read_stream(copy, "steps").problems == (
        "the end of its steps is damaged and was skipped",
    )


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_never_crashes_nor_invents_a_row(
    killed: Path, tmp_path: Path, seed: int
) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.fuzz_streams", str(copy), str(seed), "1000"],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["shorter"] > 500  # the damage was real
    assert result["grown_mib"] < 200  # and no bogus length was believed


@pytest.mark.parametrize("name", ["run.json", "ranks/00000-0/rank.json", "ranks/00000-0/heartbeat"])
def test_a_fact_file_cut_anywhere_never_stops_the_reading(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path, np.ones((1, 2, 7), np.int64), run_facts={"ended_by": None})
    HeartbeatWriter(path / "ranks" / "00000-0" / "heartbeat")
    victim = path / name
    whole = victim.read_bytes()
    # The middle of a fact file is like its neighbourhood: both ends whole, and samples between.
    sizes = {*range(0, len(whole), 23), *range(130), *range(len(whole) - 40, len(whole))}
    for size in sorted(s for s in sizes if 0 <= s < len(whole)):
        victim.write_bytes(whole[:size])
        assert read_run(path).ranks[0].steps.num_rows == 2


def outcome(path: Path) -> str:
    try:
        return f"{len(read_run(path).ranks)} ranks"
    except RecordError as error:
        return error.slug


def test_noise_in_fact_files_never_stops_the_reading(tmp_path: Path) -> None:
    """Whatever a changed byte makes of the JSON: a sentence, or a refusal that names the reason."""
    path = write_run(
        tmp_path, np.ones((2, 2, 7), np.int64), rank_facts={"probe_failures": {"a": 1}}
    )
    rng = np.random.default_rng(5)
    for name in ("run.json", "ranks/00000-0/rank.json"):
        whole = (path / name).read_bytes()
        for _ in range(200):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] = rng.choice(
                list(b'{}[]",:0179 \x00\xffnulltrue.eE-')
            )
            (path / name).write_bytes(changed)
            assert outcome(path) in ("2 ranks", "newer-record")
        (path / name).write_bytes(whole)
