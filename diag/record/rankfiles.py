"""A rank's rows on disk: first in the journal, then in compressed blocks, one file per stream.

At every instant all flushed rows are in one of the two. Rows are numbered: one that is in both
(the process died after the blocks were written and before the journal was emptied) is read once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diag.record.appendfile import AppendFile
from diag.record.encode import MessageEncoder, RowEncoder, best_compression
from diag.record.journal import Journal
from diag.record.schema import STREAMS

Row = tuple[Any, ...]
# A block of 4,096 rows holds the interpreter for some 3 ms, in pieces.
_BLOCK_ROWS = 4096
_BLOCK_AGE_S = 30.0
# Steps come last: a step in a block has its collectives in one, whatever ends the process.
_ORDER = ("collectives", "gauges", "events", "steps")


def block_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.arrows"


class _Blocks:
    """One stream's file of blocks."""

    def __init__(self, directory: Path, name: str) -> None:
        self.file = AppendFile(block_path(directory, name))
        self._rows = RowEncoder(STREAMS[name], pause=partial(time.sleep, 0))
        self._messages = MessageEncoder(STREAMS[name], best_compression())

    def append(self, rows: Sequence[Row], first: int) -> int:
        """Write `rows` as one block; returns how many did not fit the schema. Raises OSError."""
        batch = self._rows.batch(rows)
        self.file.append(self._messages.encode(batch, first, first + len(rows)))
        return len(rows) - len(batch)

    def finish(self) -> None:
        self.file.append(self._messages.finish())


class RankFiles:
    """The record files of one rank; one thread at a time.

    Attributes:
        refused: rows that will never be in the record.
    """

    def __init__(self, directory: Path) -> None:
        """Create the files. Raises OSError."""
        self.refused = 0
        self._blocks = {name: _Blocks(directory, name) for name in STREAMS}
        self._journal = Journal(directory)
        self._files = [self._journal.file, *(b.file for b in self._blocks.values())]
        self._journaled: dict[str, list[Row]] = {name: [] for name in STREAMS}
        self._first = dict.fromkeys(STREAMS, 0)  # number of the first journaled row
        self._since = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self._files)

    def write(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Hand rows, by stream, to the system.

        Raises:
            OSError: the system refused. Rows that were accepted are tried again by the next call,
                those that could not be are counted in `refused`.
            ValueError: rows did not fit their schema; they are counted in `refused`.
        """
        count = sum(map(len, rows.values()))
        self.refused += count
        self._journal.file.check()
        if any(file.full for file in self._files):
            self._push()
        self.refused -= count
        if count:
            self._to_journal(rows)
        self._push()
        if self._due():
            _complain(self._to_blocks())

    def finish(self) -> None:
        """Put everything into blocks, mark their end, remove the journal. Raises as `write`."""
        try:
            self._journal.file.check()
            self._push()
            misfits = self._to_blocks()
            for blocks in self._blocks.values():
                blocks.finish()
            self._journal.file.path.unlink(missing_ok=True)
        finally:
            self.close()
        _complain(misfits)

    def close(self) -> None:
        """Let go of the files as they are. Idempotent."""
        for file in self._files:
            file.close()

    def _push(self) -> None:
        for file in self._files:
            file.push()

    def _to_journal(self, rows: Mapping[str, Sequence[Row]]) -> None:
        if not any(self._journaled.values()):
            self._since = time.monotonic()
        first = {name: self._first[name] + len(held) for name, held in self._journaled.items()}
        for name, its_rows in rows.items():
            self._journaled[name].extend(its_rows)
        self._journal.append(first, rows)

    def _due(self) -> bool:
        count = sum(map(len, self._journaled.values()))
        return count > 0 and (
            count >= _BLOCK_ROWS or time.monotonic() - self._since >= _BLOCK_AGE_S
        )

    def _to_blocks(self) -> int:
        """Move the journaled rows; returns how many did not fit the schema. Raises OSError."""
        failure: OSError | None = None
        misfits = 0
        for name in _ORDER:
            rows, self._journaled[name] = self._journaled[name], []
            first = self._first[name]
            self._first[name] += len(rows)
            try:
                misfits += self._blocks[name].append(rows, first) if rows else 0
            except OSError as error:
                failure = error  # accepted all the same: the other streams go on
        self.refused += misfits
        if failure is not None:
            raise failure
        # Only now are the journal's rows safe elsewhere.
        self._journal.clear()
        return misfits


def _complain(misfits: int) -> None:
    if misfits:
        raise ValueError(f"{misfits} rows did not fit their schema")
