"""The heartbeat: what is written is read, torn writes are seen, other layouts refused."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diag.errors import RecordError
from diag.record.heartbeat import SIZE, HeartbeatWriter, boot_id, read_heartbeat
from diag.record.schema import Phase


def test_what_is_beaten_is_read(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path / "heartbeat")
    before = time.monotonic_ns()
    writer.beat(12, Phase.BACKWARD, 30, 29, before)
    beat = read_heartbeat(tmp_path / "heartbeat")
    assert (beat.step, beat.phase, beat.entered, beat.completed) == (12, Phase.BACKWARD, 30, 29)
    assert beat.pending_since_ns == before
    assert before <= beat.monotonic_ns <= time.monotonic_ns()
    assert (beat.pid, beat.boot_id) == (os.getpid(), boot_id())
    assert beat.consistent


def test_the_file_is_one_private_page_and_says_something_at_once(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    HeartbeatWriter(path)
    assert path.stat().st_size == SIZE == 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_heartbeat(path).phase == -1


def test_each_beat_has_the_next_number(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path / "heartbeat")
    numbers = []
    for step in range(3):
        writer.beat(step, 0, 0, 0, 0)
        numbers.append(read_heartbeat(tmp_path / "heartbeat").number)
    assert numbers == [2, 3, 4]


def test_a_beat_that_was_never_finished_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    HeartbeatWriter(path).beat(5, 0, 0, 0, 0)
    page = bytearray(path.read_bytes())
    struct.pack_into("<Q", page, 64, 99)  # the front number, as after a death in mid-write
    path.write_bytes(page)
    beat = read_heartbeat(path)
    assert not beat.consistent
    assert beat.step == 5


_BEATER = """
import sys
from pathlib import Path
from diag.record.heartbeat import HeartbeatWriter
writer = HeartbeatWriter(Path(sys.argv[1]))
print(flush=True)
n = 0
while True:
    n += 1
    writer.beat(n, n % 7, n, n, n)
"""


def test_a_reader_in_another_process_never_sees_two_beats_mixed(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    beater = subprocess.Popen(
        [sys.executable, "-c", _BEATER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert beater.stdout is not None
        beater.stdout.readline()
        seen = set()
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            beat = read_heartbeat(path)
            if beat.consistent:
                assert beat.entered == beat.completed == beat.step == beat.pending_since_ns
                assert beat.step in (0, beat.number - 1)
                seen.add(beat.number)
        assert len(seen) > 10
    finally:
        beater.send_signal(signal.SIGKILL)
        beater.communicate()
    assert read_heartbeat(path).pid == beater.pid  # it outlives the death of its writer


def test_a_forked_child_does_not_beat_for_its_parent(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path / "heartbeat")
    writer.beat(1, 0, 0, 0, 0)
    child = os.fork()
    if child == 0:  # pragma: no cover
        writer.beat(1000, 0, 0, 0, 0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert read_heartbeat(tmp_path / "heartbeat").step == 1


def test_a_beat_takes_about_a_microsecond(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path / "heartbeat")
    took = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for n in range(5_000):
            writer.beat(n, 0, n, n, 0)
        took.append((time.perf_counter_ns() - start) / 5_000)
    assert min(took) < 3_000  # ns; 420 on a quiet machine


@pytest.mark.parametrize("content", [b"", b"DIAGBEAT", b"x" * SIZE, bytes(SIZE)])
def test_what_is_no_heartbeat_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heartbeat"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_heartbeat(path)
    assert caught.value.slug == "bad-heartbeat"


def test_a_newer_layout_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    HeartbeatWriter(path)
    page = bytearray(path.read_bytes())
    struct.pack_into("<I", page, 8, 7)
    path.write_bytes(page)
    with pytest.raises(RecordError, match="has layout 7; this diag reads up to 1"):
        read_heartbeat(path)
