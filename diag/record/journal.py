"""The journal: the rows of the last seconds as lines of JSON, so that a SIGKILL loses none.

Arrow's framing of a few rows costs a kilobyte and, with cold caches, 2 ms of the training
process's time at every flush, on every rank at another moment. A line of JSON costs a quarter
of that. So flushes go here, and rows become Arrow blocks only by the thousand; then the journal
is emptied.

A line is its CRC-32 in hex, a space, and a JSON object. The first names the columns of each
stream; each other one holds, for one flush and each stream that had rows, the number of the
first row and the rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.record.appendfile import AppendFile
from diag.record.schema import STREAMS

Row = tuple[Any, ...]
FILE_NAME = "tail.jsonl"


def _plain(value: object) -> object:
    """What JSON does not know: numpy's scalars become numbers, all else a text that fits nowhere."""
    item = getattr(value, "item", None)
    return item() if callable(item) else repr(value)


# Rows hold no containers, so nothing can be circular; the check costs a quarter of the time.
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=_plain).encode


def _line(content: Mapping[str, Any]) -> bytes:
    text = _encode(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


_HEADER = _line({"columns": {name: schema.names for name, schema in STREAMS.items()}})


class Journal:
    """Writes the journal of one rank."""

    def __init__(self, directory: Path) -> None:
        """Create the file. Raises OSError."""
        self.file = AppendFile(directory / FILE_NAME)
        self._begun = False

    def append(self, first: Mapping[str, int], rows: Mapping[str, Sequence[Row]]) -> None:
        """Add one flush. Raises OSError; the rows are accepted even so (see AppendFile)."""
        flush = {name: [first[name], its_rows] for name, its_rows in rows.items() if its_rows}
        header = b"" if self._begun else _HEADER
        self._begun = True
        self.file.append(header + _line(flush))

    def clear(self) -> None:
        """Forget all rows. Raises OSError; nothing is changed then."""
        self.file.clear()
        self._begun = False


@dataclass(frozen=True)
class Entry:
    """The rows of one stream in one flush; `first` is the number of the first one."""

    stream: str
    first: int
    rows: list[Row]


def read_journal(directory: Path) -> tuple[list[Entry], bool]:
    """All readable entries, and whether the file ends in something unreadable.

    Columns are in the order of the current schema; those the writer did not know are None.
    """
    try:
        lines = (directory / FILE_NAME).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], False
    except OSError:
        return [], True
    contents, torn = [], lines[-1] != b""
    for line in lines[:-1]:
        content = _content(line)
        if content is None:
            torn = True
            break
        contents.append(content)
    try:
        return list(_entries(contents)), torn
    except (AttributeError, LookupError, TypeError, ValueError):  # whole lines of another make
        return [], True


def _content(line: bytes) -> dict[str, Any] | None:
    """A line's object; None if it is not what was written."""
    text = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(text):
        return None
    content = json.loads(text)
    return content if isinstance(content, dict) else None


def _entries(contents: list[dict[str, Any]]) -> Iterator[Entry]:
    if not contents:
        return
    columns = {name: its for name, its in contents[0]["columns"].items() if name in STREAMS}
    for flush in contents[1:]:
        for stream, (first, rows) in flush.items():
            if stream in columns:
                yield Entry(stream, first, _conform(rows, columns[stream], STREAMS[stream].names))


def _conform(rows: list[list[Any]], columns: list[str], wanted: list[str]) -> list[Row]:
    """Rows with the wanted columns; one that never fitted becomes (), which fits nowhere."""
    if columns == wanted:
        return [tuple(row) for row in rows]
    positions = [columns.index(c) if c in columns else None for c in wanted]
    return [
        tuple(None if at is None else row[at] for at in positions)
        if len(row) == len(columns)
        else ()
        for row in rows
    ]
