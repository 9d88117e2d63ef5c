"""Damaged files: cut at every byte, filled with zeros or noise. Nothing false is ever read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diag.errors import RecordError
from diag.record.heartbeat import HeartbeatWriter
from diag.record.journal import read_journal
from diag.record.reader import read_run
from diag.record.schema import STREAMS
from diag.record.streamreader import read_blocks, read_streams
from diag.record.writer import RankWriter
from helpers.records import write_run
from helpers.rows import collective_row, gauge_row, step_row

TESTS = Path(__file__).resolve().parents[1]
_STEPS = 36
_IN_BLOCKS = 24


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank's directory as a SIGKILL leaves it: two blocks, and two flushes in the journal."""
    directory = tmp_path_factory.mktemp("killed") / "live"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diag.record.rankfiles._BLOCK_ROWS", 24)
        writer = RankWriter(directory)
        for step in range(_STEPS):
            site = None if step % 5 == 0 else f"bucket {step % 11}"
            writer.append_collective(collective_row(step, step, site=site))
            if step % 6 == 0:
                writer.append_gauge(gauge_row(step))
            writer.append_step(step_row(step))
            if step % 12 == 11 or step == 29:
                writer.flush()
            if step == _IN_BLOCKS:
                patch.setattr("diag.record.rankfiles._BLOCK_ROWS", 1_000)
    copy = directory.with_name("killed")
    shutil.copytree(directory, copy)
    writer.close()
    return copy


def indices(directory: Path) -> list[int]:
    found: list[int] = read_streams(directory).tables["steps"]["index"].to_pylist()
    return found


def test_the_undamaged_rank_is_whole(killed: Path) -> None:
    read = read_streams(killed)
    assert read.tables["steps"]["index"].to_pylist() == list(range(_STEPS))
    assert [len(read.tables[name]) for name in ("collectives", "gauges")] == [36, 6]
    assert (read.problems, read.closed) == ((), False)
    assert (killed / "tail.jsonl").stat().st_size > 1_000


def cuts(path: Path, every: int = 1) -> Iterator[int]:
    """Cut `path` shorter and shorter, at every byte or every so many; yields its sizes."""
    whole = path.read_bytes()
    for size in range(len(whole) - 1, -1, -every):
        path.write_bytes(whole[:size])
        yield size


def test_a_journal_cut_at_any_byte_gives_its_whole_lines(killed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    whole = [e for e in read_journal(copy)[0] if e.stream == "steps"]
    assert [(e.first, len(e.rows)) for e in whole] == [(_IN_BLOCKS, 6), (30, 6)]
    counts = []
    for size in cuts(copy / "tail.jsonl"):
        entries, torn = read_journal(copy)
        found = [e for e in entries if e.stream == "steps"]
        assert found == whole[: len(found)]
        assert torn or size == 0 or (copy / "tail.jsonl").read_bytes().endswith(b"\n")
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {0, 1}


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_block_file_cut_at_any_byte_gives_its_whole_blocks(
    killed: Path, tmp_path: Path, name: str
) -> None:
    path = shutil.copytree(killed, tmp_path / "copy") / f"{name}.arrows"
    whole = [item.batch.to_pylist() for item in read_blocks(path, name).batches]
    assert len(whole) == 2
    counts = []
    for _ in cuts(path):
        blocks = read_blocks(path, name)
        found = [item.batch.to_pylist() for item in blocks.batches]
        assert found == whole[: len(found)]
        assert not blocks.closed
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {0, 1}


def test_what_a_cut_leaves_is_put_together_with_the_rest(killed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    first, second = list(range(12)), list(range(12, _IN_BLOCKS))
    journal = [list(range(_IN_BLOCKS, 30)), list(range(30, _STEPS))]
    seen = set()
    for _ in cuts(copy / "tail.jsonl", every=23):
        found = indices(copy)
        assert found in ([*first, *second], [*first, *second, *journal[0]])
        seen.add(len(found))
    shutil.copy(killed / "tail.jsonl", copy)
    for _ in cuts(copy / "steps.arrows", every=23):
        found = indices(copy)
        assert found in ([*first, *journal[0], *journal[1]], [*journal[0], *journal[1]])
        seen.add(len(found))
    assert seen == {24, 30, 12}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tail.jsonl", "the end of its journal is damaged and was skipped"),
        ("steps.arrows", "the end of its steps is damaged and was skipped"),
        ("gauges.arrows", "the end of its gauges is damaged and was skipped"),
    ],
)
def test_a_cut_inside_a_message_is_said(
    killed: Path, tmp_path: Path, name: str, problem: str
) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:-9])
    assert problem in read_streams(copy).problems


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_never_crashes_nor_invents_a_row(
    killed: Path, tmp_path: Path, seed: int
) -> None:
    copy = shutil.copytree(killed, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.fuzz_streams", str(copy), str(seed), "500"],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["shorter"] > 250  # the damage was real
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
