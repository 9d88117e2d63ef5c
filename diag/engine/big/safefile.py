"""Tensors in safetensors files, each read by itself when it is wanted.

The format (github.com/huggingface/safetensors): eight bytes little-endian give the length of a
JSON header, which names every tensor with its type, shape and place among the bytes behind it.
Tensors are read into fresh memory, not mapped: a mapped weight may lie at any address, on which
the last bit of a matrix product can depend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diag.engine.amounts import in_words
from diag.errors import DiagError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class SafeFile:
    """A file as it was when its header was read."""

    path: Path
    num_bytes: int
    changed_ns: int


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `num_bytes` from byte `start` on."""

    file: SafeFile
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def read(self) -> torch.Tensor:
        """Its value, on the CPU.

        Raises:
            DiagError: the file cannot be read any more, or is not the one it was.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        into = _bytes_of(tensor)
        path = self.file.path
        try:
            with path.open("rb", buffering=0) as stream:
                _require_unchanged(self.file, os.fstat(stream.fileno()))
                stream.seek(self.start)
                while into and (count := stream.readinto(into)):
                    into = into[count:]
        except OSError as error:
            raise _unreadable(path, error) from error
        if into:
            raise _changed(path)
        return tensor


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors in the safetensors file at `path`, by name; none is read yet.

    Raises:
        DiagError: it cannot be read, was cut off, or is no such file.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 1 < length <= _MOST_HEADER or status.st_size < _LENGTH_BYTES:
                raise _no_safetensors(path)
            text = stream.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(text) < length:
        raise _cut_off(path, status.st_size, _LENGTH_BYTES + length)
    file = SafeFile(path, status.st_size, status.st_mtime_ns)
    try:
        stored = _parse(file, json.loads(text), _LENGTH_BYTES + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_safetensors(path) from error
    end = max((s.start + s.num_bytes for s in stored.values()), default=0)
    if end > file.num_bytes:
        raise _cut_off(path, file.num_bytes, end)
    return stored


def _parse(file: SafeFile, header: dict[str, Any], base: int) -> dict[str, Stored]:
    return {
        name: _entry(file, name, entry, base)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _entry(file: SafeFile, name: str, entry: dict[str, Any], base: int) -> Stored:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise DiagError(
            "unknown-dtype",
            f"{file.path.name}: {name!r} is of type {entry['dtype']}, which torch has no name for.",
            hint="Convert the checkpoint to a type torch computes with.",
        )
    shape = tuple(int(extent) for extent in entry["shape"])
    first, last = (int(offset) for offset in entry["data_offsets"])
    count = dtype.itemsize
    for extent in shape:
        count *= extent
    if last - first != count or first < 0 or min(shape, default=0) < 0:
        raise ValueError(f"{name}: {last - first} bytes for {shape} of {dtype}")
    return Stored(file, name, dtype, shape, base + first, count)


def write_safefile(path: Path, contents: Iterable[tuple[Stored, torch.dtype]]) -> None:
    """Copy stored tensors, converted, into a new file at `path`; whole or not at all.

    One tensor at a time is in memory.

    Raises:
        OSError: it cannot be written.
    """
    wanted = list(contents)
    header: dict[str, Any] = {}
    end = 0
    for stored, dtype in wanted:
        begin, end = end, end + converted_bytes(stored, dtype)
        header[stored.name] = {
            "dtype": _NAMES[dtype], "shape": stored.shape, "data_offsets": (begin, end)
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for stored, dtype in wanted:
                value = stored.read().to(dtype)
                stream.write(_bytes_of(value))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def converted_bytes(stored: Stored, dtype: torch.dtype) -> int:
    return stored.num_bytes // stored.dtype.itemsize * dtype.itemsize


def _require_unchanged(file: SafeFile, now: os.stat_result) -> None:
    if (now.st_size, now.st_mtime_ns) != (file.num_bytes, file.changed_ns):
        raise _changed(file.path)


def _changed(path: Path) -> DiagError:
    return DiagError(
        "checkpoint-changed",
        f"{path} was replaced or changed after the model was loaded from it.",
        hint="Weights placed on the disk are read from it in every forward: keep it as it is, or "
        "give offload_folder= to work from a copy.",
    )


def _cut_off(path: Path, present: int, expected: int) -> DiagError:
    return DiagError(
        "checkpoint-truncated",
        f"{path} holds {present:,} bytes of {expected:,} ({in_words(present)} of {in_words(expected)}): "
        "it was cut off.",
        hint="Download or write it again.",
    )


def _unreadable(path: Path, error: OSError) -> DiagError:
    return DiagError("checkpoint-unreadable", f"{path} cannot be read: {error.strerror or error}.")


def _no_safetensors(path: Path) -> DiagError:
    return DiagError(
        "not-safetensors",
        f"{path} is no safetensors file.",
        hint="Convert others once: safetensors.torch.save_file(torch.load(PATH, "
        "weights_only=True), 'model.safetensors').",
    )
