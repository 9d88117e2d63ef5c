"""Nests: their leaves and paths, and the same nest with others."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch

from diag.engine.trees import flatten, mapped, unflatten

Point = namedtuple("Point", "x y")


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = None


@dataclass
class Derived:
    a: Any
    twice: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.twice = [self.a, self.a]


class Named(list[Any]):
    """A list whose constructor wants more than its elements."""

    def __init__(self, name: str, values: Any) -> None:
        super().__init__(values)
        self.name = name


def doubled(tree: Any) -> Any:
    return unflatten(tree, iter([leaf.value * 2 for leaf in flatten(tree)]))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (3, 6),
        ([1, (2, {"a": 3})], [2, (4, {"a": 6})]),
        (Point(1, [2]), Point(2, [4])),
        (Frozen(1, (2,)), Frozen(2, (4,))),
        (OrderedDict(b=1, a=2), OrderedDict(b=2, a=4)),
        ({"n": None, "x": 1}, {"n": None, "x": 2}),
        ([], []),
        (None, None),
    ],
)
def test_the_nest_stays_and_the_leaves_change(tree: Any, expected: Any) -> None:
    result = doubled(tree)
    assert result == expected
    assert type(result) is type(expected)


def test_containers_that_cannot_be_made_from_their_elements() -> None:
    grouped: defaultdict[str, int] = defaultdict(int, a=1)
    assert doubled(grouped) == {"a": 2}
    assert doubled(grouped).default_factory is int
    assert dict(doubled(UserDict(a=1))) == {"a": 2}
    assert doubled(MappingProxyType({"a": 1})) == {"a": 2}
    named = doubled(Named("batch", [1, 2]))
    assert (named.name, list(named)) == ("batch", [2, 4])
    derived = doubled(Derived(1))  # not computed anew by its constructor
    assert (derived.a, derived.twice) == (2, [2, 2])
    pair = doubled(torch.ones(2, 1).max(0))
    assert pair.values.item() == 2.0


def test_the_original_is_left_alone() -> None:
    tree = {"a": [1, Point(2, 3)]}
    doubled(tree)
    assert tree == {"a": [1, Point(2, 3)]}


def test_paths_read_like_python() -> None:
    tree = {"labels": [0, (1,)], 3: Point(2, None), "out": Frozen(4)}
    assert [leaf.path for leaf in flatten(tree)] == [
        "['labels'][0]",
        "['labels'][1][0]",
        "[3].x",
        "['out'].a",
    ]
    assert flatten(5)[0].path == ""


def test_opaque_containers_are_leaves() -> None:
    tree = {"words": ["a", "b"], "n": (1,)}
    opaque = lambda value: isinstance(value, list)  # noqa: E731
    leaves = flatten(tree, opaque)
    assert [leaf.value for leaf in leaves] == [["a", "b"], 1]
    assert unflatten(tree, iter("xy"), opaque) == {"words": "x", "n": ("y",)}


def test_a_nest_none_of_whose_leaves_changes_is_the_same_object() -> None:
    nest = {"a": [1, 2], "b": (3, None)}
    assert mapped(nest, lambda leaf: leaf) is nest
    assert mapped(nest, lambda leaf: -leaf) == {"a": [-1, -2], "b": (-3, None)}
    assert mapped(nest, repr, lambda value: isinstance(value, list))["a"] == "[1, 2]"
