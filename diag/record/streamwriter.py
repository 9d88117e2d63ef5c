"""One stream on disk: a tail that is always current, and blocks that are small and fast to read.

A flush of a few rows costs a kilobyte of Arrow's framing. So flushes go to `<name>.tail.arrows`,
and now and then all rows of the tail are written again, as one compressed block, to
`<name>.arrows`, after which the tail starts anew. Rows are numbered: one that is in both files
(the process died between the two writes) is read once. At every instant all flushed rows are
in one of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from diag.record.appendfile import AppendFile
from diag.record.encode import MessageEncoder, RowEncoder, best_compression
from diag.record.schema import STREAMS

Row = tuple[Any, ...]
_BLOCK_ROWS = 4096
_BLOCK_AGE_S = 30.0


def block_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.arrows"


def tail_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.tail.arrows"


class StreamWriter:
    """Collects rows (`append`, any thread) and writes them (one thread)."""

    def __init__(self, directory: Path, name: str) -> None:
        """Create the stream's files. Raises OSError."""
        rows: list[Row] = []
        self.append: Callable[[Row], None] = rows.append
        self._rows = rows
        self._schema = STREAMS[name]
        self._encoder = RowEncoder(self._schema)
        self._blocks = MessageEncoder(self._schema, best_compression())
        self._tail = MessageEncoder(self._schema)
        self._block_file = AppendFile(block_path(directory, name))
        self._tail_file = AppendFile(tail_path(directory, name))
        self._in_tail: list[pa.RecordBatch] = []
        self._tail_rows = 0
        self._tail_since = time.monotonic()
        self._next_row = 0
        self.refused = 0  # rows that will never be in the record

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._block_file.size + self._tail_file.size

    def take(self) -> list[Row]:
        """Remove and return the rows appended so far."""
        # Copy, then delete what was copied: each is atomic, later appends land behind it, and
        # the list stays the same object, so that a bound `append` may be kept by the caller.
        count = len(self._rows)
        taken = self._rows[:count]
        del self._rows[:count]
        return taken

    def write(self, rows: Sequence[Row]) -> None:
        """Hand `rows` to the system.

        Raises:
            OSError: the system refused; accepted rows are tried again by the next call, and
                those that could not even be accepted are counted in `refused`.
            ValueError, TypeError: a row does not fit the schema; all of `rows` are `refused`.
        """
        self.refused += len(rows)
        self._block_file.check()
        if self._tail_file.full or self._block_file.full:
            self._block_file.push()
            self._tail_file.push()
        batch = self._encoder.batch(rows) if rows else None
        self.refused -= len(rows)
        if batch is not None:
            self._to_tail(batch)
        self._tail_file.push()
        self._block_file.push()
        self._compact(_BLOCK_ROWS, _BLOCK_AGE_S)

    def finish(self) -> None:
        """Put everything into blocks, mark their end, remove the tail. Raises OSError."""
        try:
            self._block_file.check()
            self._compact(1, 0.0)
            self._block_file.append(self._blocks.finish())
            if not self._tail_rows:
                self._tail_file.path.unlink(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the files as they are. Idempotent."""
        self._block_file.close()
        self._tail_file.close()

    def discard(self) -> None:
        """Drop the rows not written yet."""
        self._rows.clear()

    def _to_tail(self, batch: pa.RecordBatch) -> None:
        data = self._tail.encode(batch, self._next_row)
        if not self._in_tail:
            self._tail_since = time.monotonic()
        self._in_tail.append(batch)
        self._tail_rows += len(batch)
        self._next_row += len(batch)
        self._tail_file.append(data)

    def _compact(self, rows: int, age_s: float) -> None:
        due = self._tail_rows >= rows or time.monotonic() - self._tail_since >= age_s
        if not self._tail_rows or not due or self._block_file.waits:
            return
        block = self._encoder.merge(self._in_tail)
        data = self._blocks.encode(block, self._next_row - self._tail_rows)
        self._in_tail = []
        self._tail_rows = 0
        self._block_file.append(data)
        # Only now are the tail's rows safe elsewhere.
        self._tail_file.clear()
        self._tail = MessageEncoder(self._schema)
