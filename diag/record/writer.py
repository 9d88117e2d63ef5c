"""The recorder inside a training process: cheap appends, flushed twice a second by a thread.

The training thread only ever calls `list.append`. Everything else - building columns,
encoding, writing - happens on one daemon thread whose cost is measured and exposed. No
failure here reaches the training: it is counted in `failures` and training goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diag.errors import DiagError
from diag.record.appendfile import AppendFile
from diag.record.atomic import write_json_atomic
from diag.record.encode import StreamEncoder
from diag.record.rollup import roll_up
from diag.record.schema import STREAMS
from diag.record.store import RANK_JSON

Row = tuple[Any, ...]
MAX_BYTES = 256 * 2**20
FLUSH_INTERVAL_S = 0.5
_LOCK_TIMEOUT_S = 5.0
# Steps come last: a step on disk has its collectives on disk, whatever kills the process.
_WRITE_ORDER = ("collectives", "gauges", "events", "steps")


class _Stream:
    """One stream's rows in waiting, its encoder and its file."""

    def __init__(self, directory: Path, name: str) -> None:
        self.rows: list[Row] = []
        self.encoder = StreamEncoder(STREAMS[name])
        self.file = AppendFile(directory / f"{name}.arrows")

    def take(self) -> list[Row]:
        # Copy, then delete what was copied: each is atomic, appends land behind it, and the
        # list stays the same object, so a bound `append` may be cached by the caller.
        count = len(self.rows)
        taken = self.rows[:count]
        del self.rows[:count]
        return taken


class RankWriter:
    """Writes one rank's record into `directory`.

    `append_step`, `append_collective`, `append_gauge` and `append_event` take a tuple in the
    schema's column order; they are `list.append`, from any thread, and never fail.

    Attributes:
        failures: flushes that failed in part or whole.
        last_failure: what the last of them said.
        lost_rows: rows that will never be in the record.
        flushes: flushes so far.
        flush_cost_ns: CPU time of all flushes, on the threads that did them.
        flush_wall_ns: their wall time.
        rolled_up_from: the first step whose collectives are sums only, or None.
        stopped_from: the first step that is not recorded for lack of room, or None.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        """Create `directory` (mode 0700) and its files.

        Raises:
            DiagError: `record-not-writable`, with the system's reason.
        """
        self.directory = directory
        self.failures = 0
        self.last_failure = ""
        self.lost_rows = 0
        self.flushes = 0
        self.flush_cost_ns = 0
        self.flush_wall_ns = 0
        self.rolled_up_from: int | None = None
        self.stopped_from: int | None = None
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False
        self._last_step = -1
        self._streams = _open_streams(directory)
        self.append_step: Callable[[Row], None] = self._streams["steps"].rows.append
        self.append_collective: Callable[[Row], None] = self._streams["collectives"].rows.append
        self.append_gauge: Callable[[Row], None] = self._streams["gauges"].rows.append
        self.append_event: Callable[[Row], None] = self._streams["events"].rows.append
        _living.add(self)
        atexit.register(self.close)

    @property
    def bytes_written(self) -> int:
        """On disk so far, all streams."""
        return sum(stream.file.size for stream in self._streams.values())

    def start(self) -> None:
        """Begin to flush every half second on a daemon thread. Idempotent."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="diag-record", daemon=True)
            self._thread.start()

    def flush(self) -> bool:
        """Write all that was appended before this call; False if it could not be done."""
        # A timeout, because a signal handler may call this while its own thread flushes.
        if self._closed or not self._lock.acquire(timeout=_LOCK_TIMEOUT_S):
            return False
        try:
            return not self._closed and self._measured_flush()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Flush, mark the streams as complete, stop the thread. Idempotent."""
        if self._closed or not self._lock.acquire(timeout=_LOCK_TIMEOUT_S):
            return
        try:
            if not self._closed:
                self._measured_flush()
                self._finish()
        finally:
            self._closed = True
            self._lock.release()
        self._wake.set()
        atexit.unregister(self.close)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LOCK_TIMEOUT_S)

    def write_rank_json(self, facts: Mapping[str, Any]) -> bool:
        """Replace rank.json, atomically; False (and a failure counted) if that fails."""
        if os.getpid() != self._pid:
            return False
        try:
            write_json_atomic(self.directory / RANK_JSON, facts)
        except (OSError, ValueError) as error:
            self._failed(error)
            return False
        return True

    def _run(self) -> None:
        while not self._wake.wait(FLUSH_INTERVAL_S):
            self.flush()

    def _measured_flush(self) -> bool:
        wall, cpu = time.monotonic_ns(), time.thread_time_ns()
        failures = self.failures
        self._flush_all()
        self.flushes += 1
        self.flush_cost_ns += time.thread_time_ns() - cpu
        self.flush_wall_ns += time.monotonic_ns() - wall
        return self.failures == failures

    def _flush_all(self) -> None:
        self.append_event(_anchor())
        # Steps are taken first and written last; see _WRITE_ORDER.
        steps = self._streams["steps"].take()
        taken = {"steps": steps, "collectives": self._streams["collectives"].take()}
        self._mind_the_cap(taken)
        for name in ("gauges", "events"):
            taken[name] = self._streams[name].take()
        for name in _WRITE_ORDER:
            self._write(self._streams[name], taken[name])
        if steps:
            self._last_step = steps[-1][0]

    def _mind_the_cap(self, taken: dict[str, list[Row]]) -> None:
        """Past 3/4 of the cap collectives become sums; at the cap rows are no longer kept."""
        size = self.bytes_written
        if size >= self._max_bytes:
            if self.stopped_from is None:
                self.stopped_from = self._last_step + 1
                self._note_rollup("stopped", self.stopped_from)
            self.lost_rows += sum(map(len, taken.values()))
            for rows in taken.values():
                rows.clear()
        elif size >= self._max_bytes * 3 // 4:
            if self.rolled_up_from is None:
                self.rolled_up_from = self._last_step + 1
                self._note_rollup("rolled up", self.rolled_up_from)
            taken["collectives"] = roll_up(taken["collectives"])

    def _note_rollup(self, what: str, step: int) -> None:
        detail = {"what": what, "from_step": step, "max_bytes": self._max_bytes}
        self.append_event((time.monotonic_ns(), 0, step, "rollup", json.dumps(detail)))

    def _write(self, stream: _Stream, rows: list[Row]) -> None:
        try:
            stream.file.check()
            if stream.file.full:
                self.lost_rows += len(rows)
                stream.file.push()
            elif rows:
                stream.file.append(stream.encoder.encode(rows))
            else:
                stream.file.push()
        except OSError as error:
            self._failed(error)
        except Exception as error:  # a row that does not fit must not end the training
            self.lost_rows += len(rows)
            self._failed(error)

    def _finish(self) -> None:
        for name in _WRITE_ORDER:
            stream = self._streams[name]
            try:
                stream.file.append(stream.encoder.finish())
            except Exception as error:
                self._failed(error)
            stream.file.close()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.last_failure = f"{type(error).__name__}: {error}"

    def _disarm(self) -> None:
        """In a forked child: the files and the record belong to the parent."""
        self._closed = True
        self._thread = None
        self.append_step = self.append_collective = _discard
        self.append_gauge = self.append_event = _discard
        for stream in self._streams.values():
            stream.rows.clear()
            with contextlib.suppress(OSError):
                stream.file.close()


def _open_streams(directory: Path) -> dict[str, _Stream]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {name: _Stream(directory, name) for name in STREAMS}
    except OSError as error:
        raise DiagError(
            "record-not-writable", f"cannot record into {directory}: {error.strerror or error}"
        ) from error


def _anchor() -> Row:
    now, wall = time.monotonic_ns(), time.time_ns()
    detail = f'{{"monotonic_ns": {now}, "realtime_ns": {wall}}}'
    return (now, 0, None, "anchor", detail)


def _discard(_row: Row) -> None:
    return None


_living: weakref.WeakSet[RankWriter] = weakref.WeakSet()


def _disarm_all() -> None:
    for writer in list(_living):
        writer._disarm()


os.register_at_fork(after_in_child=_disarm_all)
