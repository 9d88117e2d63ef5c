"""Ranks that act together: all succeed, or all raise the same error. None waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from diag.engine import torch_private, wire
from diag.engine.agreement import name_ranks
from diag.engine.logs import get_logger
from diag.engine.process import Process
from diag.errors import DiagError, ExitCode

T = TypeVar("T")

# As long as NCCL lets a collective wait: a rank that comes later would have failed anyway.
PATIENCE_S = 600.0
SAYS_SO_AFTER_S = 15.0
_PREFIX = "diag/checkpoint"
_logger = get_logger(__name__)


@dataclass(frozen=True)
class _Failure:
    """A rank's error, in words that can be sent."""

    slug: str
    what: str
    hint: str
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        if isinstance(error, DiagError):
            return cls(error.slug, error.what, error.hint, error.exit_code)
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):
            hint = "Look at the disk's room and the directory's permissions."
            return cls("checkpoint-io", what, hint, ExitCode.DIAG_FAILED)
        return cls("checkpoint-failed", what, "", ExitCode.DIAG_FAILED)


def together(process: Process, action: Callable[[], T]) -> T:
    """Run `action` on every rank; its own result, once it has succeeded on all. Collective.

    Raises:
        DiagError: it failed on some rank. Every rank raises, with the first rank's words.
    """
    attempt = _attempt(action)
    _agree(process, everyones(process, attempt.failure), attempt.cause)
    return attempt.result  # type: ignore[return-value]


def on_main(process: Process, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 alone; everyone gets its result, or its error. Collective."""
    attempt: _Attempt[T] = _attempt(action) if process.is_main else _Attempt()
    told = everyones(process, (attempt.failure, attempt.result))
    _agree(process, [failure for failure, _ in told], attempt.cause)
    return told[0][1]  # type: ignore[return-value]


def everyones(process: Process, value: T) -> list[T]:
    """Every rank's `value`, by rank. Collective."""
    return wire.gather_object(process, value) if process.distributed else [value]


@dataclass(frozen=True)
class _Attempt(Generic[T]):
    result: T | None = None
    failure: _Failure | None = None
    cause: Exception | None = None


def _attempt(action: Callable[[], T]) -> _Attempt[T]:
    try:
        return _Attempt(result=action())
    except Exception as error:
        return _Attempt(failure=_Failure.of(error), cause=error)


def _agree(process: Process, told: Sequence[_Failure | None], cause: Exception | None) -> None:
    failures = {rank: failure for rank, failure in enumerate(told) if failure is not None}
    if failures:
        raise _agreed(failures, process.world_size) from cause


def _agreed(failures: dict[int, _Failure], world_size: int) -> DiagError:
    first = next(iter(failures.values()))
    alike = [rank for rank, failure in failures.items() if failure.what == first.what]
    where = "" if len(alike) == world_size else f"On {name_ranks(alike)}: "
    return DiagError(first.slug, where + first.what, first.hint, first.exit_code)


def meet(process: Process, call: str, patience_s: float) -> None:
    """Make sure that every rank has come to the same `call` before any collective is issued.

    A collective that one rank alone enters would pair with whatever the others do next. This
    goes through the job's key-value store, which nobody else waits at.

    Raises:
        DiagError: a rank did not come within `patience_s`, or came to another call.
    """
    store = torch_private.job_store() if process.distributed else None
    if store is None:
        return
    # The count lives in the store, so that a new process group begins anew.
    count = store.add(f"{_PREFIX}/calls/{process.rank}", 1)
    keys = [f"{_PREFIX}/{count}/{rank}" for rank in range(process.world_size)]
    store.set(keys[process.rank], call)
    try:
        _wait(store, keys, call, patience_s)
    except RuntimeError as error:
        absent = _absent(store, keys)
        store.delete_key(keys[process.rank])
        store.add(f"{_PREFIX}/calls/{process.rank}", -1)
        if not absent:
            raise
        raise _did_not_come(call, absent, patience_s) from error
    calls = [store.get(key).decode() for key in keys]
    if len(set(calls)) > 1:
        raise _came_elsewhere(calls)


def _wait(store: Any, keys: list[str], call: str, patience_s: float) -> None:
    """Wait for every key, and say for whom if that takes long: a user may be watching."""
    first = min(patience_s, SAYS_SO_AFTER_S)
    try:
        store.wait(keys, timedelta(seconds=first))
    except RuntimeError:
        absent = _absent(store, keys)
        if first >= patience_s or not absent:
            raise
        _logger.warning(
            f"{call} has waited {first:g} s for {name_ranks(absent)}: every rank must make this "
            f"call. It gives up after {patience_s:g} s.",
            main_process_only=False,
        )
        store.wait(keys, timedelta(seconds=patience_s - first))


def _absent(store: Any, keys: list[str]) -> list[int]:
    return [rank for rank, key in enumerate(keys) if not store.check([key])]


def _did_not_come(call: str, absent: list[int], patience_s: float) -> DiagError:
    return DiagError(
        "checkpoint-on-some-ranks",
        f"{call}: {name_ranks(absent)} did not come within {patience_s:g} s.",
        "Every rank must make this call: take it out of `if engine.is_main_process` and the like.",
    )


def _came_elsewhere(calls: list[str]) -> DiagError:
    listed = "; ".join(f"rank {rank}: {call}" for rank, call in enumerate(calls[:8]))
    return DiagError(
        "checkpoint-calls-differ",
        f"The ranks came to different calls. {listed}.",
        "Give every rank the same directory: build its name on rank 0, or from the step alone.",
    )
