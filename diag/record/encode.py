"""Rows to bytes: tuples become record batches, batches become Arrow IPC messages.

Dictionary columns keep one growing table per stream and ship only its new entries (Arrow's
delta dictionaries), so a call site's name is written once per file.

An IPC message has no checksum of its own, and after a power cut a file may end in zeros that
decode as rows. Every batch therefore carries as metadata the numbers of its rows, which tie the
stream to the journal, and a CRC-32 of those, of its columns and of its contents.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from diag.record.columns import column

CRC_KEY = b"crc32"
ROWS_KEY = b"rows"
_OVERFLOW = "(others)"


class _Codes:
    """The growing dictionary of one column."""

    def __init__(self, kind: pa.DictionaryType) -> None:
        self._kind = kind
        self._code: dict[str | None, int | None] = {None: None}
        # The last code is kept for everything that no longer fits the index type.
        self._room: int = 2 ** (kind.index_type.bit_width - 1) - 1
        self._names: list[str] = []
        self._dictionary = column([], kind.value_type)

    def encode(self, values: Sequence[str | None]) -> pa.DictionaryArray:
        try:
            codes = list(map(self._code.__getitem__, values))
        except KeyError:
            codes = list(map(self._add, values))
        if len(self._dictionary) != len(self._names):
            self._dictionary = column(self._names, self._kind.value_type)
        return self.name(column(codes, self._kind.index_type))

    def name(self, codes: pa.Array) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(codes, self._dictionary, safe=False)

    def _add(self, value: str | None) -> int | None:
        if value in self._code:
            return self._code[value]
        if not isinstance(value, str):  # once in the dictionary it would spoil every later batch
            raise TypeError(f"{value!r} is no name")
        if len(self._names) < self._room:
            self._code[value] = len(self._names)
            self._names.append(value)
            return self._code[value]
        if len(self._names) == self._room:
            self._names.append(_OVERFLOW)
        return self._room


class RowEncoder:
    """Builds one stream's record batches, all of them with the same growing dictionaries.

    `pause` is called after each column; inside a training process it lets go of the interpreter,
    since a block is long work.
    """

    def __init__(self, schema: pa.Schema, pause: Callable[[], None] = lambda: None) -> None:
        self._schema = schema
        self._pause = pause
        self._codes = {f.name: _Codes(f.type) for f in schema if pa.types.is_dictionary(f.type)}

    def batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        """`rows` as a batch, without those that do not fit the schema."""
        if not rows:
            none = [pa.nulls(0, field.type) for field in self._schema]
            return pa.RecordBatch.from_arrays(none, schema=self._schema)
        try:
            return self._whole(rows)
        except (ValueError, TypeError, OverflowError):  # pyarrow's are among them
            return self._whole(self._fitting(rows)) if len(rows) > 1 else self.batch(())

    def _fitting(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows that fit, found by halving: one bad row among thousands costs little."""
        try:
            self._whole(rows)
            return list(rows)
        except (ValueError, TypeError, OverflowError):
            middle = len(rows) // 2
            return self._fitting(rows[:middle]) + self._fitting(rows[middle:]) if middle else []

    def _whole(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        arrays = []
        for field, values in zip(self._schema, zip(*rows, strict=True), strict=True):
            codes = self._codes.get(field.name)
            arrays.append(column(values, field.type) if codes is None else codes.encode(values))
            self._pause()
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class MessageEncoder:
    """Turns batches into the next bytes of one Arrow IPC stream."""

    def __init__(self, schema: pa.Schema, compression: str | None = None) -> None:
        # One thread: pyarrow's pool belongs to the host process.
        options = pa.ipc.IpcWriteOptions(
            use_threads=False, emit_dictionary_deltas=True, compression=compression
        )
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, schema, options=options)

    def encode(self, batch: pa.RecordBatch, first_row: int, next_row: int) -> bytes:
        """The messages that append `batch`; the first call's begin with the schema.

        `batch` stands for the rows from number `first_row` up to `next_row`, exclusive.
        """
        rows = (first_row, next_row)
        notes = {ROWS_KEY: b"%d %d" % rows, CRC_KEY: b"%d" % checksum(batch, rows)}
        self._writer.write_batch(batch, notes)
        return self._drain()

    def finish(self) -> bytes:
        """The last bytes: Arrow's end-of-stream mark."""
        self._writer.close()
        return self._drain()

    def _drain(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


def best_compression() -> str | None:
    """What to compress whole blocks with: zstd (5x on timings) where pyarrow was built with it."""
    return next((c for c in ("zstd", "lz4") if pa.Codec.is_available(c)), None)


def checksum(batch: pa.RecordBatch, rows: tuple[int, int]) -> int:
    """CRC-32 of a batch's columns and values; the same before writing and after reading."""
    columns = " ".join(f"{field.name}:{_type_name(field.type)}" for field in batch.schema)
    value = zlib.crc32(f"{rows} {len(batch)} {columns}".encode())
    for contents in batch.columns:
        value = _array_checksum(contents, value)
    return value


def _type_name(kind: pa.DataType) -> str:
    # Spelled out: how pyarrow prints a dictionary type may change between versions.
    return f"{kind.index_type}>{kind.value_type}" if pa.types.is_dictionary(kind) else str(kind)


def _array_checksum(array: pa.Array, value: int) -> int:
    if pa.types.is_dictionary(array.type):
        return _array_checksum(array.dictionary, _array_checksum(array.indices, value))
    assert array.offset == 0, "a slice's buffers do not begin at its first value"
    validity, *data = array.buffers()
    if array.null_count:
        value = zlib.crc32(memoryview(validity)[: (len(array) + 7) // 8], value)
    if not len(array):
        return value
    if pa.types.is_string(array.type):
        offsets = memoryview(data[0])[: 4 * (len(array) + 1)]
        end = int.from_bytes(offsets[-4:], "little")
        text = memoryview(data[1])[:end] if data[1] is not None else b""
        return zlib.crc32(text, zlib.crc32(offsets, value))
    width = array.type.bit_width // 8
    return zlib.crc32(memoryview(data[0])[: width * len(array)], value)
