"""The size limit: collectives become sums, then recording stops, and the record says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from diag.record.reader import read_run
from diag.record.rollup import roll_up
from diag.record.store import RunDir
from diag.record.writer import RankWriter
from helpers.rows import STEP_NS, collective_row, step_row


def test_collectives_of_one_step_group_op_and_source_become_one_row() -> None:
    rows = [
        collective_row(0, 0, bytes=10, issue_ns=5, wait_ns=100, end_ns=130),
        collective_row(0, 1, bytes=20, issue_ns=3, wait_ns=200, end_ns=250, dtype="bfloat16"),
        collective_row(0, 2, bytes=40, source="flight", wait_ns=None, end_ns=None),
        collective_row(1, 3, bytes=80),
        collective_row(1, 4, bytes=1, group="ddp:1"),
    ]
    first, flight, second, other = roll_up(rows)
    assert first == collective_row(
        0, None, bytes=30, dtype=None, issue_ns=3, wait_ns=100, end_ns=180, site=None
    )
    assert flight == collective_row(
        0, None, bytes=40, source="flight", wait_ns=None, end_ns=None, site=None
    )
    assert second == collective_row(1, None, bytes=80, site=None)
    assert other == collective_row(1, None, bytes=1, group="ddp:1", site=None)


def test_nothing_rolls_up_to_nothing() -> None:
    assert roll_up([]) == []


def record(directory: Path, steps: int, max_bytes: int) -> RankWriter:
    """20 collectives a step, flushed every 10 steps."""
    writer = RankWriter(directory, max_bytes)
    for step in range(steps):
        for seq in range(20):
            start = step * STEP_NS + seq
            row = collective_row(step, step * 20 + seq, wait_ns=start, end_ns=start + 1)
            writer.append_collective(row)
        writer.append_step(step_row(step))
        if step % 10 == 9:
            writer.flush()
    writer.close()
    return writer


def test_past_three_quarters_of_the_limit_collectives_are_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diag.record.rankfiles._BLOCK_ROWS", 400)
    writer = record(RunDir(tmp_path).rank_dir(0), 300, 100_000)
    first = writer.rolled_up_from
    assert first is not None
    assert 0 < first < 300
    assert writer.stopped_from is None
    run = read_run(tmp_path)
    rank = run.ranks[0]
    assert rank.steps["index"].to_pylist() == list(range(300))
    per_step = Counter(rank.collectives["step"].to_pylist())
    assert {per_step[step] for step in range(first)} == {20}
    assert {per_step[step] for step in range(first, 300)} == {1}
    assert sum(rank.collectives["bytes"].to_pylist()) == 300 * 20 * 1024
    blocked = zip(*(rank.collectives[c].to_pylist() for c in ("end_ns", "wait_ns")), strict=True)
    assert sum(end - wait for end, wait in blocked) == 300 * 20
    sentence = f"rank 0: the record neared its size limit: collectives are per-step sums from step {first} on"
    assert sentence in run.lost


@pytest.mark.parametrize("limit", [0, 20_000, 60_000])
def test_at_the_limit_recording_stops_and_says_where(tmp_path: Path, limit: int) -> None:
    writer = record(RunDir(tmp_path).rank_dir(0), 2_000, limit)
    last = writer.stopped_from
    assert last is not None
    run = read_run(tmp_path)
    assert run.ranks[0].steps["index"].to_pylist() == list(range(last))
    assert (
        f"rank 0: the record reached its size limit: nothing is recorded from step {last} on"
        in (run.lost)
    )
    assert writer.lost_rows > 2_000 - last
    assert writer.failures == 0
    size = sum(p.stat().st_size for p in writer.directory.glob("*.arrows"))
    assert size < limit + 30_000  # one flush, and the files' frames
