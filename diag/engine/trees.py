"""Nested data: the leaves of a batch, with the path to each, and the same nest with others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Leaf:
    """One value of a nest, and how to reach it: `['labels'][0]`; '' for the nest itself."""

    path: str
    value: Any


Opaque = Callable[[Any], bool]


def flatten(tree: Any, opaque: Opaque | None = None) -> list[Leaf]:
    """The leaves of nested dicts, lists, tuples, named tuples and dataclasses, in order.

    None is part of the nest, not a leaf of it.

    Args:
        opaque: what it holds for is a leaf, whatever it contains.
    """
    return list(_walk(tree, "", opaque))


def unflatten(tree: Any, values: Iterator[Any], opaque: Opaque | None = None) -> Any:
    """`tree` with its leaves replaced, in `flatten`'s order; the containers are copies."""
    if tree is None:
        return None
    parts = None if opaque is not None and opaque(tree) else _parts(tree)
    if parts is None:
        return next(values)
    return _with_parts(tree, [unflatten(part, values, opaque) for _, part in parts])


def mapped(tree: Any, function: Callable[[Any], Any], opaque: Opaque | None = None) -> Any:
    """`tree` with `function` of each leaf; the very same object where that gives every leaf back."""
    old = [leaf.value for leaf in flatten(tree, opaque)]
    new = [function(value) for value in old]
    if all(now is before for now, before in zip(new, old, strict=True)):
        return tree
    return unflatten(tree, iter(new), opaque)


def _walk(tree: Any, path: str, opaque: Opaque | None) -> Iterator[Leaf]:
    if tree is None:
        return
    parts = None if opaque is not None and opaque(tree) else _parts(tree)
    if parts is None:
        yield Leaf(path, tree)
        return
    for step, part in parts:
        yield from _walk(part, path + step, opaque)


def _parts(tree: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with its step of the path; None: it is no container."""
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", tree[key]) for key in tree]
    if is_namedtuple(tree):
        return [(f".{name}", getattr(tree, name)) for name in tree._fields]
    if isinstance(tree, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(tree)]
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(f".{field.name}", getattr(tree, field.name)) for field in fields(tree)]
    return None


def _with_parts(tree: Any, parts: list[Any]) -> Any:
    # A copy that is filled, not a new one made: a defaultdict keeps its factory, a subclass
    # what its constructor was given.
    if isinstance(tree, Mapping):
        named = dict(zip(tree, parts, strict=True))
        if not isinstance(tree, MutableMapping):
            return type(tree)(named)  # type: ignore[call-arg]
        filled = copy.copy(tree)
        for key, part in named.items():
            filled[key] = part
        return filled
    if is_namedtuple(tree):
        return type(tree)._make(parts)
    if isinstance(tree, tuple):
        return type(tree)(parts)
    if isinstance(tree, list):
        copied = copy.copy(tree)
        copied[:] = parts
        return copied
    record = copy.copy(tree)
    for field, part in zip(fields(tree), parts, strict=True):
        object.__setattr__(record, field.name, part)  # frozen ones too
    return record


def is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields") and hasattr(value, "_make")
