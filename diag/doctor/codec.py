"""Facts to JSON and back, by their type hints. A file of another version is refused by name."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diag.doctor.facts import Facts, Missing
from diag.errors import DiagError

# 1  first version.
FACTS_VERSION = 1
_SCHEMA = "diag.doctor-facts"
T = TypeVar("T")


class Malformed(ValueError):
    """A JSON value does not fit the type that it should become."""


def encode(value: Any) -> Any:
    """A dataclass, however nested, as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(value), allow_nan=False))


def decode(kind: type[T], value: Any) -> T:
    """JSON values as `kind`. Unknown keys are ignored: a newer writer may add some.

    Raises:
        Malformed: a key is missing or a value has another type; the message holds its path.
    """
    result: T = _decode(kind, value, kind.__name__)
    return result


def decode_or_missing(kind: type[T], value: Any) -> T | Missing:
    result: T | Missing = _decode(Union[kind, Missing], value, kind.__name__)  # noqa: UP007  at run time
    return result


def _decode(kind: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, path)
    if origin is tuple:
        return tuple(
            _decode(args[0], v, f"{path}[{i}]") for i, v in enumerate(_as_list(value, path))
        )
    if origin is Literal:
        return _expect(value in args, value, f"one of {args}", path)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, path)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_expect(number, value, "a number", path))
    exact = type(value) is kind  # so that true is not taken for 1
    return _expect(exact, value, f"a {getattr(kind, '__name__', kind)}", path)


def _decode_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None:
        return _expect(type(None) in args, value, "a value", path)
    kinds = [a for a in args if a is not type(None)]
    if Missing in kinds and isinstance(value, dict) and "missing" in value:
        return _decode(Missing, value, path)
    return _decode(next(k for k in kinds if k is not Missing), value, path)


def _decode_dataclass(kind: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), value, "an object", path)
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name in names:
        _expect(name in value, value, f"a key {name!r}", path)
    return kind(**{n: _decode(hints[n], value[n], f"{path}.{n}") for n in names})


def _as_list(value: Any, path: str) -> list[Any]:
    return list(_expect(isinstance(value, list), value, "a list", path))


def _expect(fits: bool, value: Any, what: str, path: str) -> Any:
    if not fits:
        raise Malformed(f"{path}: expected {what}, found {json.dumps(value)[:60]}")
    return value


def dumps(facts: Facts) -> str:
    document = {"schema": f"{_SCHEMA}/{FACTS_VERSION}", **encode(facts)}
    return json.dumps(document, indent=1) + "\n"


def load(path: Path) -> Facts:
    """Facts that `dumps` wrote.

    Raises:
        DiagError: not such a file, truncated, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != f"{_SCHEMA}/{FACTS_VERSION}":
            raise Malformed(f"its schema is {schema!r}, not {_SCHEMA}/{FACTS_VERSION}")
        return decode(Facts, document)
    except (OSError, ValueError) as error:
        hint = "write them again with this version: python -m diag.doctor.child facts"
        raise DiagError("facts-unreadable", f"{path} cannot be read: {error}", hint) from error
