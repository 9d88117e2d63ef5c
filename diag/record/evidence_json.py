"""Evidence of a hang as JSON and back: what is read may be older, newer, partial or damaged.

A verdict on part of the evidence is worth more than none, so reading is tolerant: unknown fields
are ignored, missing ones and those of another type take their defaults (unknown, empty, zero).
Only a file that is no evidence at all, or of a newer major version, is refused.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diag.errors import RecordError
from diag.record.atomic import read_json_object, write_json_atomic
from diag.record.evidence import HangEvidence
from diag.record.plain import plain_json

# 1  first version.
EVIDENCE_VERSION = 1
_SCHEMA = "diag.hang-evidence"
T = TypeVar("T")


class _Misfit(Exception):
    """A JSON value that cannot become what is wanted."""


def encode_evidence(evidence: HangEvidence) -> dict[str, Any]:
    """Built from dicts, lists, str, int, finite float, bool and None."""
    plain = plain_json(asdict(evidence))
    return {"schema": f"{_SCHEMA}/{EVIDENCE_VERSION}", **plain}


def decode_evidence(contents: Mapping[str, Any]) -> HangEvidence:
    """What `encode_evidence` gave, as far as it is still there.

    Raises:
        RecordError: it is no evidence, or of a newer major version.
    """
    _check_schema(contents.get("schema"))
    return decode_or_default(HangEvidence, contents)


def write_evidence(path: Path, evidence: HangEvidence) -> None:
    """Replace `path` (mode 0600). Raises OSError."""
    write_json_atomic(path, encode_evidence(evidence))


def read_evidence(path: Path) -> HangEvidence:
    """The evidence in `path`.

    Raises:
        OSError: it cannot be read.
        RecordError: it is torn, no evidence, or of a newer major version.
    """
    try:
        return decode_evidence(read_json_object(path))
    except ValueError as error:
        raise RecordError("bad-evidence", f"{path} is torn or no JSON: {error}") from error


def decode_or_default(kind: type[T], value: Any) -> T:
    """`value` as the dataclass `kind`: what is missing or misfits takes its default."""
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    given = value if isinstance(value, Mapping) else {}
    return kind(**{f.name: _field(f, hints[f.name], given) for f in fields(kind)})  # type: ignore[arg-type]


def _check_schema(schema: object) -> None:
    name, _, version = str(schema).rpartition("/")
    if name != _SCHEMA or not version.isdigit():
        raise RecordError("bad-evidence", f"its schema is {schema!r}, not {_SCHEMA}/1")
    if int(version) > EVIDENCE_VERSION:
        raise RecordError(
            "newer-evidence",
            f"it is {schema}; this diag reads up to {_SCHEMA}/{EVIDENCE_VERSION}",
            "read it with the diag that wrote it, or a newer one",
        )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _field(field: Field[Any], hint: Any, given: Mapping[Any, Any]) -> Any:
    if field.name in given:
        try:
            return _decode(hint, given[field.name])
        except _Misfit:
            pass
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    return _empty(hint)


def _empty(hint: Any) -> Any:
    """What stands for an unknown value in a field without a default."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "unknown" if "unknown" in args else args[0]
    if origin in (Union, types.UnionType):
        return None
    return (origin or hint)()


def _decode(hint: Any, value: Any) -> Any:
    """`value` as `hint`. Raises _Misfit."""
    decoder = _DECODERS.get(get_origin(hint))
    if decoder is not None:
        return decoder(get_args(hint), value)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _Misfit
        return decode_or_default(hint, value)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:  # exact, so that true is not taken for 1
        raise _Misfit
    return value


def _literal(args: tuple[Any, ...], value: Any) -> Any:
    if value not in args:
        raise _Misfit
    return value


def _optional(args: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        return None
    return _decode(next(arg for arg in args if arg is not types.NoneType), value)


def _tuple(args: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    """One item that misfits does not cost the others."""
    if not isinstance(value, list):
        raise _Misfit
    return tuple(_kept(args[0], value))


def _kept(hint: Any, values: list[Any]) -> list[Any]:
    kept = []
    for value in values:
        try:
            kept.append(_decode(hint, value))
        except _Misfit:
            continue
    return kept


def _dict(args: tuple[Any, ...], value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Misfit
    number = args[0] is int
    items = {
        int(key) if number else key: _kept(args[1], [item])
        for key, item in value.items()
        if not number or str(key).removeprefix("-").isdecimal()
    }
    return {key: kept[0] for key, kept in items.items() if kept}


_DECODERS: dict[Any, Callable[[tuple[Any, ...], Any], Any]] = {
    Literal: _literal,
    Union: _optional,
    types.UnionType: _optional,
    tuple: _tuple,
    dict: _dict,
}
