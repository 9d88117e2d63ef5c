"""Reads a rank's streams: blocks and journal, whatever state they are in.

Files are read whole into memory and parsed from there, so that a bogus length in a torn
message is checked against the bytes that exist before anything is allocated. Each batch is
validated and compared with its checksum. What follows the first unreadable message of a file
is skipped and said so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from diag.record.encode import CRC_KEY, ROWS_KEY, RowEncoder, checksum
from diag.record.journal import Entry, read_journal
from diag.record.rankfiles import block_path
from diag.record.schema import STREAMS

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True)
class StreamsRead:
    """All rows of a rank.

    Attributes:
        tables: by stream, in the current schema, one chunk per column.
        closed: the writer marked the end of every stream; nothing was pending when it left.
        problems: what could not be read, as clauses that follow "rank 3: ".
    """

    tables: dict[str, pa.Table]
    closed: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Numbered:
    """A batch that stands for the rows numbered from `first` up to `following`."""

    first: int
    following: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Blocks:
    """One stream's file of blocks as read; `problem` is "" where nothing is wrong with it."""

    batches: tuple[Numbered, ...] = ()
    closed: bool = False
    problem: str = ""


def read_streams(directory: Path) -> StreamsRead:
    """Everything readable in a rank's directory; never raises for what its files hold."""
    # The journal first: were blocks written between the two reads, their rows would be in both.
    entries, torn = read_journal(directory)
    tables, problems, closed = (
        {},
        ["the end of its journal is damaged and was skipped"] * torn,
        True,
    )
    for name in STREAMS:
        blocks = read_blocks(block_path(directory, name), name)
        tables[name], its_problems = _assemble(name, blocks, entries)
        problems += its_problems
        closed &= blocks.closed
    return StreamsRead(tables, closed, tuple(problems))


def _assemble(name: str, blocks: Blocks, entries: list[Entry]) -> tuple[pa.Table, list[str]]:
    problems = [blocks.problem] if blocks.problem else []
    encoder = RowEncoder(STREAMS[name])
    journaled = [
        Numbered(e.first, e.first + len(e.rows), encoder.batch(e.rows))
        for e in entries
        if e.stream == name
    ]
    batches, missing = _in_order((*blocks.batches, *journaled))
    if missing:
        problems.append(f"{missing} rows are missing in the middle of its {name}")
    try:
        return _table(name, batches), problems
    except (pa.ArrowException, ValueError, TypeError) as error:
        unfit = f"its {name} have columns this diag cannot read ({error})"
        return STREAMS[name].empty_table(), [*problems, unfit]


def read_blocks(path: Path, name: str) -> Blocks:
    damaged = f"the end of its {name} is damaged and was skipped"
    try:
        with pa.OSFile(str(path), "rb") as source:
            data = source.read_buffer()
    except FileNotFoundError:
        return Blocks(problem=f"{name} were not recorded")
    except OSError as error:
        return Blocks(problem=f"its {name} could not be read ({error})")
    if data.size == 0:  # no block was written yet
        return Blocks()
    batches, whole = _read_messages(data)
    closed = whole and data.slice(max(0, data.size - 8)).to_pybytes() == _END_OF_STREAM
    return Blocks(batches, closed, "" if whole else damaged)


def _read_messages(data: pa.Buffer) -> tuple[tuple[Numbered, ...], bool]:
    """The batches before the first unreadable message, and whether there was none such."""
    batches: list[Numbered] = []
    try:
        reader = pa.ipc.open_stream(pa.BufferReader(data), options=_OPTIONS)
        while True:
            batch, notes = reader.read_next_batch_with_custom_metadata()
            batch.validate(full=True)
            first, following = map(int, notes[ROWS_KEY].split())
            if int(notes[CRC_KEY]) != checksum(batch, (first, following)):
                return tuple(batches), False
            batches.append(Numbered(first, following, batch))
    except StopIteration:
        return tuple(batches), True
    # Damaged bytes may fail in any way: as Arrow's errors, as OSError, as text that is no UTF-8.
    except Exception:
        return tuple(batches), False


def _in_order(numbered: Iterable[Numbered]) -> tuple[list[pa.RecordBatch], int]:
    """The batches whose rows did not come before, and how many rows lie in no batch."""
    kept: list[pa.RecordBatch] = []
    following = missing = 0
    for item in numbered:
        if item.following <= following:
            continue
        missing += max(0, item.first - following)
        kept.append(item.batch)
        following = item.following
    return kept, missing


def _table(name: str, batches: list[pa.RecordBatch]) -> pa.Table:
    schema = STREAMS[name]
    table = pa.Table.from_batches([_conform(batch, schema) for batch in batches], schema=schema)
    return table.unify_dictionaries().combine_chunks()


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The current columns: those the schema lacks dropped, those the batch lacks null."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
