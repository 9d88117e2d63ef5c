"""Rows to bytes: one stream's tuples become Arrow IPC messages, checksummed, in append order.

Dictionary columns keep one growing table per stream and ship only its new entries (Arrow's
delta dictionaries), so a call site's name is written once per file.

An IPC message has no checksum of its own: after a power cut a file may end in zeros that
decode as rows. Every batch therefore carries the CRC-32 of its contents as metadata.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

CRC_KEY = b"crc32"
_OVERFLOW = "(others)"


class _Codes:
    """The growing dictionary of one column."""

    def __init__(self, kind: pa.DictionaryType) -> None:
        self._kind = kind
        self._code: dict[str, int] = {}
        self._capacity = 2 ** (kind.index_type.bit_width - 1)
        self._names = pa.array([], kind.value_type)

    def encode(self, values: Iterable[str | None]) -> pa.DictionaryArray:
        indices = [None if v is None else self._index(v) for v in values]
        if len(self._code) != len(self._names):
            self._names = pa.array(list(self._code), self._kind.value_type)
        return pa.DictionaryArray.from_arrays(pa.array(indices, self._kind.index_type), self._names)

    def _index(self, value: str) -> int:
        code = self._code.get(value)
        if code is None:
            # The last code is kept for everything that no longer fits the index type.
            name = value if len(self._code) < self._capacity - 1 else _OVERFLOW
            code = self._code.setdefault(name, len(self._code))
        return code


class StreamEncoder:
    """Turns rows (tuples in column order) into the next bytes of one Arrow IPC stream."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._codes = {f.name: _Codes(f.type) for f in schema if pa.types.is_dictionary(f.type)}
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, schema, options=ipc_options())

    def encode(self, rows: Sequence[tuple[Any, ...]]) -> bytes:
        """The messages that append `rows`; begins with the schema on the first call.

        Raises:
            ValueError, TypeError (pyarrow's are subclasses): a row does not fit the schema.
        """
        if rows:
            self.write(self._batch(rows))
        return self._drain()

    def write(self, batch: pa.RecordBatch) -> None:
        """Queue a ready batch; `encode` or `finish` returns its bytes."""
        self._writer.write_batch(batch, custom_metadata={CRC_KEY: str(checksum(batch)).encode()})

    def finish(self) -> bytes:
        """The last bytes: Arrow's end-of-stream mark."""
        self._writer.close()
        return self._drain()

    def _batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = zip(*rows, strict=True)
        arrays = [
            self._codes[field.name].encode(values)
            if field.name in self._codes
            else pa.array(values, field.type)
            for field, values in zip(self._schema, columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _drain(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


def ipc_options() -> pa.ipc.IpcWriteOptions:
    """Single-threaded (pyarrow's pool belongs to the host process), delta dictionaries."""
    return pa.ipc.IpcWriteOptions(use_threads=False, emit_dictionary_deltas=True)


def checksum(batch: pa.RecordBatch) -> int:
    """CRC-32 of a batch's logical contents; the same before writing and after reading."""
    value = 0
    for column in batch.columns:
        value = _array_checksum(column, value)
    return value


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
