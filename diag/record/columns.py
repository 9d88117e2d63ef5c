"""Arrow arrays from plain Python values, without `pyarrow.array`.

`pyarrow.array` imports pandas, if it is installed, the first time it is called: two thirds of a
second during which a training process, or a reader of its record, waits for nothing it needs.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

_TYPE_CODES: dict[pa.DataType, str] = {
    pa.int8(): "b", pa.int16(): "h", pa.int32(): "i", pa.int64(): "q",
    pa.float32(): "f", pa.float64(): "d",
}  # fmt: skip


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """`values`, None for null, as an array of `kind`: integers, floats or strings.

    Raises:
        TypeError: a value of another type. OverflowError: a number out of range.
    """
    nulls = sum(value is None for value in values)
    validity = _bitmap(values) if nulls else None
    if pa.types.is_string(kind):
        buffers = _text(values)
    else:
        plain = values if not nulls else [0 if v is None else v for v in values]
        buffers = [array(_TYPE_CODES[kind], plain)]
    arrow = [None if b is None else pa.py_buffer(b) for b in (validity, *buffers)]
    return pa.Array.from_buffers(kind, len(values), arrow, null_count=nulls)


def _bitmap(values: Sequence[Any]) -> bytes:
    """Arrow's validity bitmap: a bit per value, the first one lowest."""
    bits = bytearray((len(values) + 7) // 8)
    for at, value in enumerate(values):
        if value is not None:
            bits[at // 8] |= 1 << at % 8
    return bytes(bits)


def _text(values: Sequence[Any]) -> list[Any]:
    parts = [_utf8(value) for value in values]
    return [array("i", accumulate(map(len, parts), initial=0)), b"".join(parts)]


def _utf8(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.encode()
