"""Reads one stream of a rank's record: its blocks and its tail, whatever state they are in.

Files are read whole into memory and parsed from there, so that a bogus length in a torn
message is checked against the bytes that exist before anything is allocated. Each batch is
validated and compared with its checksum. What follows the first unreadable message of a file
is skipped and said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from diag.record.encode import CRC_KEY, FIRST_ROW_KEY, checksum
from diag.record.schema import STREAMS
from diag.record.streamwriter import block_path, tail_path

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True)
class StreamRead:
    """A stream's rows in the current schema, one chunk per column.

    Attributes:
        closed: the writer marked its end; nothing was pending when the process left.
        problems: what could not be read, as clauses that follow "rank 3: ".
    """

    table: pa.Table
    closed: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Numbered:
    """A batch and the number of its first row in the stream."""

    first_row: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class _FileRead:
    batches: tuple[_Numbered, ...] = ()
    closed: bool = False
    damaged: bool = False


def read_stream(directory: Path, name: str) -> StreamRead:
    """Everything readable of the stream `name`; never raises for what a file holds."""
    # The tail first: were a block written between the two reads, its rows would be in both.
    tail = _read_file(tail_path(directory, name))
    blocks = _read_file(block_path(directory, name))
    problems = []
    if blocks is None and tail is None:
        return StreamRead(_empty(name), False, (f"{name} were not recorded",))
    blocks, tail = blocks or _FileRead(damaged=True), tail or _FileRead()
    if blocks.damaged or tail.damaged:
        problems.append(f"the end of its {name} is damaged and was skipped")
    batches, missing = _in_order((*blocks.batches, *tail.batches))
    if missing:
        problems.append(f"{missing} rows are missing in the middle of its {name}")
    table, unfit = _table(name, batches)
    return StreamRead(table, blocks.closed, (*problems, *unfit))


def _read_file(path: Path) -> _FileRead | None:
    """None where there is no such file."""
    try:
        with pa.OSFile(str(path), "rb") as source:
            data = source.read_buffer()
    except FileNotFoundError:
        return None
    except OSError:
        return _FileRead(damaged=True)
    if data.size == 0:  # nothing was written yet
        return _FileRead()
    batches, damaged = _read_messages(data)
    closed = not damaged and data.slice(max(0, data.size - 8)).to_pybytes() == _END_OF_STREAM
    return _FileRead(batches, closed, damaged)


def _read_messages(data: pa.Buffer) -> tuple[tuple[_Numbered, ...], bool]:
    batches: list[_Numbered] = []
    try:
        reader = pa.ipc.open_stream(pa.BufferReader(data), options=_OPTIONS)
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            batch.validate(full=True)
            first_row = int(metadata[FIRST_ROW_KEY])
            if int(metadata[CRC_KEY]) != checksum(batch, first_row):
                return tuple(batches), True
            batches.append(_Numbered(first_row, batch))
    except StopIteration:
        return tuple(batches), False
    # Damaged bytes may fail in any way: as Arrow's errors, as OSError, as text that is no UTF-8.
    except Exception:
        return tuple(batches), True


def _in_order(numbered: tuple[_Numbered, ...]) -> tuple[list[pa.RecordBatch], int]:
    """Batches without the rows that came before, and how many rows lie in no batch."""
    kept: list[pa.RecordBatch] = []
    following = missing = 0
    for item in numbered:
        missing += max(0, item.first_row - following)
        fresh = item.batch.slice(max(0, following - item.first_row))
        if len(fresh):
            kept.append(fresh)
        following = max(following, item.first_row + len(item.batch))
    return kept, missing


def _empty(name: str) -> pa.Table:
    return STREAMS[name].empty_table()


def _table(name: str, batches: list[pa.RecordBatch]) -> tuple[pa.Table, tuple[str, ...]]:
    """The batches in the current schema: columns it lacks dropped, columns they lack null."""
    try:
        parts = [_conform(batch, STREAMS[name]) for batch in batches]
    except (pa.ArrowException, ValueError, TypeError) as error:
        return _empty(name), (f"its {name} have columns this diag cannot read ({error})",)
    table = pa.Table.from_batches(parts, schema=STREAMS[name])
    return table.unify_dictionaries().combine_chunks(), ()


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
