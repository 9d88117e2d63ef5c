"""The recorder inside a training process: cheap appends, flushed every 0.8 s by a thread.

The training thread only ever calls `list.append`. All else (encoding, writing) happens on one
daemon thread whose cost is measured. No failure here reaches the training:
it is counted in `failures`, written into the record when possible, and training goes on.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diag.errors import DiagError
from diag.record.atomic import write_json_atomic
from diag.record.cap import Cap
from diag.record.rankfiles import RankFiles
from diag.record.schema import SCHEMA_MAJOR, SCHEMA_MINOR, STREAMS
from diag.record.store import RANK_JSON

Row = tuple[Any, ...]
SCHEMA_VERSION = {"major": SCHEMA_MAJOR, "minor": SCHEMA_MINOR}
MAX_BYTES = 256 * 2**20
FLUSH_INTERVAL_S = 0.8
_LOCK_TIMEOUT_S = 5.0
_TAKE_ORDER = ("steps", "collectives", "gauges", "events")


class _Queue:
    """Rows on their way from any thread to the flushing one."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self.append: Callable[[Row], None] = self._rows.append

    def take(self) -> list[Row]:
        """Remove and return the rows appended so far."""
        # Copy, then delete what was copied: each is atomic, later appends land behind it, and
        # the list stays the same object, so that a bound `append` may be kept by the caller.
        count = len(self._rows)
        taken = self._rows[:count]
        del self._rows[:count]
        return taken


class RankWriter:
    """Writes one rank's record into `directory`.

    `append_step`, `append_collective`, `append_gauge` and `append_event` take a tuple in the
    schema's column order; they are `list.append`, callable from any thread, and never fail.
    In a forked child the writer is inert: the record belongs to the parent.

    Attributes:
        failures: writes that failed.
        last_failure: what the last of them said.
        flushes: flushes so far.
        flush_cost_ns: CPU time of all flushes on the threads that did them.
        flush_wall_ns: their wall time.
        before_flush: called before each flush, on its thread: the last word of whoever appends.
    """

    append_step: Callable[[Row], None]
    append_collective: Callable[[Row], None]
    append_gauge: Callable[[Row], None]
    append_event: Callable[[Row], None]

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        """Create `directory` (mode 0700) and its files.

        Raises:
            DiagError: `record-not-writable`, with the system's reason.
        """
        self.directory = directory
        self.failures = 0
        self.last_failure = ""
        self.flushes = 0
        self.flush_cost_ns = 0
        self.flush_wall_ns = 0
        self.before_flush: Callable[[], object] = lambda: None
        self._reported = (0, 0)
        self._cap = Cap(max_bytes)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._inert = False
        self._files = _open_files(directory)
        self._queues = {name: _Queue() for name in STREAMS}
        self.append_step = self._queues["steps"].append
        self.append_collective = self._queues["collectives"].append
        self.append_gauge = self._queues["gauges"].append
        self.append_event = self._queues["events"].append
        _living.add(self)
        atexit.register(self.close)

    @property
    def bytes_written(self) -> int:
        """On disk now, all files but rank.json."""
        return self._files.size

    @property
    def lost_rows(self) -> int:
        """Rows that will never be in the record."""
        return self._cap.dropped + self._files.refused

    @property
    def rolled_up_from(self) -> int | None:
        """The first step whose collectives are sums only, for lack of room."""
        return self._cap.rolled_up_from

    @property
    def stopped_from(self) -> int | None:
        """The first step that is not recorded, for lack of room."""
        return self._cap.stopped_from

    def start(self) -> None:
        """Begin to flush every 0.8 s on a daemon thread. Idempotent."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="diag-record", daemon=True)
            self._thread.start()

    def flush(self) -> bool:
        """Write all that was appended before this call; False if something failed."""
        # With a timeout: a signal handler may call this while its own thread is flushing.
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
                self._contained(self._files.finish)
        finally:
            self._closed = True
            self._lock.release()
        self._wake.set()
        atexit.unregister(self.close)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LOCK_TIMEOUT_S)

    def write_rank_json(self, facts: Mapping[str, Any]) -> bool:
        """Replace rank.json, atomically; False (and a failure counted) if that fails.

        The schema's version is added, so that a rank's files can be read on their own.
        """
        if self._inert:
            return False
        try:
            write_json_atomic(self.directory / RANK_JSON, {"schema": SCHEMA_VERSION, **facts})
        except (OSError, TypeError, ValueError) as error:
            self._failed(error)
            return False
        return True

    def _run(self) -> None:
        while not self._wake.wait(FLUSH_INTERVAL_S):
            self.flush()

    def _measured_flush(self) -> bool:
        wall, cpu, failures = time.monotonic_ns(), time.thread_time_ns(), self.failures
        self._flush_all()
        self.flushes += 1
        self.flush_cost_ns += time.thread_time_ns() - cpu
        self.flush_wall_ns += time.monotonic_ns() - wall
        return self.failures == failures

    def _flush_all(self) -> None:
        self._contained(self.before_flush)
        self.append_event(_anchor())
        self._report_failures()
        # Steps first: what belongs to a step was appended before it, and is taken after it.
        taken = {name: self._queues[name].take() for name in _TAKE_ORDER}
        kept = self._cap.apply(self._files.size, taken)
        self._contained(partial(self._files.write, kept))

    def _contained(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, it must not end the training
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.last_failure = f"{type(error).__name__}: {error}"

    def _report_failures(self) -> None:
        state = (self.failures, self.lost_rows)
        if state == self._reported:
            return
        self._reported = state
        detail = {
            "where": "record",
            "count": self.failures,
            "lost_rows": self.lost_rows,
            "reason": self.last_failure,
        }
        self.append_event((time.monotonic_ns(), 0, None, "probe_failure", json.dumps(detail)))

    def _disarm(self) -> None:
        self._inert = self._closed = True
        self._thread = None
        self.append_step = self.append_collective = _discard
        self.append_gauge = self.append_event = _discard
        for queue in self._queues.values():
            queue.take()
        self._files.close()


def _open_files(directory: Path) -> RankFiles:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RankFiles(directory)
    except OSError as error:
        raise DiagError(
            "record-not-writable", f"cannot record into {directory}: {error.strerror or error}"
        ) from error


def _anchor() -> Row:
    now, wall = time.monotonic_ns(), time.time_ns()
    return (now, 0, None, "anchor", f'{{"monotonic_ns": {now}, "realtime_ns": {wall}}}')


def _discard(_row: Row) -> None:
    return None


_living: weakref.WeakSet[RankWriter] = weakref.WeakSet()


def _disarm_all() -> None:
    for writer in list(_living):
        writer._disarm()


os.register_at_fork(after_in_child=_disarm_all)
