"""Who does what: one rank alone, one before the others, or all at once."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from diag.engine import wire
from diag.engine.process import Process
from diag.engine.sharing import split_between_processes

__all__ = [
    "Trigger",
    "local_main_process_first",
    "main_process_first",
    "on_last_process",
    "on_local_main_process",
    "on_local_process",
    "on_main_process",
    "on_process",
    "print",
    "split_between_processes",
    "wait_for_everyone",
]

P = ParamSpec("P")
R = TypeVar("R")


def wait_for_everyone(process: Process) -> None:
    """Return when every rank has come here."""
    if process.distributed:
        wire.barrier()


@contextmanager
def main_process_first(process: Process) -> Iterator[None]:
    """Rank 0 goes through the block, then all others. Every rank must come.

    The others go on also when rank 0 fails in it: they would wait for a rank that is gone.
    """
    with _first(process, process.is_main):
        yield


@contextmanager
def local_main_process_first(process: Process) -> Iterator[None]:
    """Each node's first rank goes through the block, then all others. Every rank must come."""
    with _first(process, process.is_local_main):
        yield


@contextmanager
def _first(process: Process, goes_first: bool) -> Iterator[None]:
    if not goes_first:
        wait_for_everyone(process)
    try:
        yield
    finally:
        if goes_first:
            wait_for_everyone(process)


def on_main_process(process: Process, function: Callable[P, R]) -> Callable[P, R | None]:
    """`function`, which does nothing and returns None but on rank 0."""
    return _only(function, process.is_main)


def on_local_main_process(process: Process, function: Callable[P, R]) -> Callable[P, R | None]:
    """`function`, which does nothing and returns None but on each node's first rank."""
    return _only(function, process.is_local_main)


def on_last_process(process: Process, function: Callable[P, R]) -> Callable[P, R | None]:
    """`function`, which does nothing and returns None but on the last rank."""
    return _only(function, process.is_last)


def on_process(
    process: Process, function: Callable[P, R], process_index: int
) -> Callable[P, R | None]:
    """`function`, which does nothing and returns None but on rank `process_index`.

    A single process plays every rank.
    """
    return _only(function, not process.distributed or process.rank == process_index)


def on_local_process(
    process: Process, function: Callable[P, R], local_process_index: int
) -> Callable[P, R | None]:
    """`function`, which does nothing and returns None but on each node's rank `local_process_index`."""
    return _only(function, not process.distributed or process.local_rank == local_process_index)


def _only(function: Callable[P, R], here: bool) -> Callable[P, R | None]:
    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if here else None

    return limited


def print(process: Process, *args: Any, **kwargs: Any) -> None:
    """The built-in `print`, once per node."""
    if process.is_local_main:
        builtins.print(*args, **kwargs)


class Trigger:
    """A flag any rank can set and all ranks see: stop early, save now, break."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Set it on this rank; nobody is told before all ranks `check`."""
        self._set = True

    def check(self, process: Process) -> bool:
        """Was it set on any rank since the last check? Collective; resets it everywhere."""
        mine, self._set = self._set, False
        if not process.distributed:
            return mine
        flag = torch.tensor(mine, dtype=torch.int32, device=process.device)
        return bool(wire.reduce(process, flag, "max").item())
