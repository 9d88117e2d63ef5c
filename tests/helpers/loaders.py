"""Prepared loaders without processes: rank r of N, whose random order is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diag.engine.data import PreparedLoader, prepare_loader
from diag.engine.options import DataOptions
from diag.engine.process import Process


def process(rank: int = 0, world_size: int = 1) -> Process:
    backend = "gloo" if world_size > 1 else None
    return Process(rank, rank, world_size, world_size, torch.device("cpu"), backend)


class Observer:
    """Remembers who began and ended."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.open: list[Any] = []

    def loader_began(self, loader: PreparedLoader) -> None:
        self.heard.append("began")
        self.open.append(loader)

    def loader_ended(self, loader: PreparedLoader) -> None:
        self.heard.append("ended")
        self.open.remove(loader)


def prepared(
    loader: DataLoader[Any],
    rank: int = 0,
    world_size: int = 1,
    observer: Observer | None = None,
    **options: Any,
) -> PreparedLoader:
    """`loader` for rank `rank`; reads for itself, in the order of seed 5, unless said otherwise."""
    chosen = DataOptions(**{"dispatch_batches": False, "data_seed": 5} | options)
    return prepare_loader(loader, process(rank, world_size), chosen, observer or Observer())


def every_rank(loader: DataLoader[Any], world_size: int, **options: Any) -> list[PreparedLoader]:
    return [prepared(loader, rank, world_size, **options) for rank in range(world_size)]


class Numbers(Dataset[int]):
    """Sample i is i. Remembers what was read, in the process that reads."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


class Augmented(Numbers):
    """Sample i is (i, a random number)."""

    def __getitem__(self, index: int) -> Any:
        return index, torch.rand(()).item()


class Stream(IterableDataset[int]):
    """The numbers below `length`; forever if None."""

    def __init__(self, length: int | None) -> None:
        self.length = length
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        at = 0
        while self.length is None or at < self.length:
            self.read += 1
            yield at
            at += 1


class SizedStream(Stream):
    def __len__(self) -> int:
        assert self.length is not None
        return self.length


def values(loader: Sequence[Any] | DataLoader[Any]) -> list[list[int]]:
    """A pass over a loader of number batches."""
    return [batch.tolist() for batch in loader]
