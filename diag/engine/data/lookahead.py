"""Knowing whether an item is the last one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final, TypeVar


class Following(Enum):
    """What follows an item, if no item does."""

    END = 0
    FAILED = 1  # an exception


END: Final = Following.END
FAILED: Final = Following.FAILED
T = TypeVar("T")


def with_next(items: Iterable[T]) -> Iterator[tuple[T, T | Following]]:
    """Each item with the one after it, or with END or FAILED.

    An exception met while looking ahead is raised where it belongs: after the item before it.
    """
    iterator = iter(items)
    following: T | Following = next(iterator, END)
    while not isinstance(following, Following):
        current, failure = following, None
        try:
            following = next(iterator, END)
        except Exception as error:
            following, failure = FAILED, error
        yield current, following
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it holds this frame, which must not hold it
