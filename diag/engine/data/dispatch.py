"""Rank 0 alone reads, and hands every rank its part of each round.

Reading costs the job once, and ranks cannot disagree about the data; but all wait for one. Every
rank must take every batch: one that leaves the loop alone leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from diag.engine.data.post import hand_out
from diag.engine.data.reading import Source
from diag.engine.data.seen import as_data_time
from diag.engine.data.sharding import Share, Step
from diag.engine.process import Process
from diag.errors import DiagError


@dataclass(frozen=True)
class _End:
    """The pass is over on every rank."""


@dataclass(frozen=True)
class _Failed:
    """Rank 0 could not read on; so that the others fail with it instead of waiting."""

    error: str


class DispatchSource:
    """Batches that rank 0 reads.

    Args:
        inner: reads for all ranks.
        on_device: the parts are wanted on the rank's device, not on the CPU.
    """

    def __init__(self, inner: Source, process: Process, on_device: bool) -> None:
        self._inner = inner
        self._process = process
        self._device = process.device if on_device else torch.device("cpu")

    @property
    def reader(self) -> DataLoader[Any]:
        return self._inner.reader

    @property
    def exact(self) -> bool:
        return self._inner.exact

    @property
    def share(self) -> Share:
        return self._inner.share

    @share.setter
    def share(self, share: Share) -> None:
        self._inner.share = share

    @property
    def seed(self) -> int | None:
        return self._inner.seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        self._inner.seed = seed

    def deliveries(self, epoch: int, skip: int) -> Generator[Step, None, None]:
        if self._process.is_main:
            yield from self._lead(epoch, skip)
        else:
            yield from self._follow(skip)

    def _lead(self, epoch: int, skip: int) -> Iterator[Step]:
        reading = _by_round(self._inner.deliveries(epoch, skip), self._process.world_size)
        while True:
            try:
                steps = next(reading, None)
            except Exception as error:
                self._tell_all(_Failed(f"{type(error).__name__}: {error}"))
                raise
            if steps is None:
                self._tell_all(_End())
                return
            missing = self._process.world_size - len(steps)
            self._exchange([*steps, *[None] * missing])
            yield steps[0]

    def _follow(self, skip: int) -> Iterator[Step]:
        if not skip:
            # Rank 0's loader draws its workers' seed: the ranks' generators stay in step.
            torch.empty((), dtype=torch.int64).random_(generator=self.reader.generator)
        while not isinstance(message := self._exchange(None), _End):
            if isinstance(message, _Failed):
                raise DiagError(
                    "reading-failed",
                    f"Rank 0, which reads for all ranks, failed: {message.error}",
                    hint="Its traceback is in rank 0's output.",
                )
            if message is not None:  # else the round has nothing for this rank
                yield message

    def _tell_all(self, message: _End | _Failed) -> None:
        self._exchange([message] * self._process.world_size)

    def _exchange(self, messages: list[Any] | None) -> Any:
        with as_data_time():
            return hand_out(self._process, messages, self._device)

    def num_batches(self, rank: int, skip: int = 0) -> int:
        return self._inner.num_batches(rank, skip)


def _by_round(steps: Iterable[Step], num_ranks: int) -> Iterator[list[Step]]:
    """The steps of each round, which come in the order of their ranks; the last may have fewer."""
    iterator = iter(steps)
    while taken := list(islice(iterator, num_ranks)):
        yield taken
