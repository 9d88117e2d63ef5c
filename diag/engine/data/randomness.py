"""Draws that agree on all ranks: a stream drawn in random states of its own.

Whatever a sampler (or an iterable dataset) draws from, be it torch's, Python's or numpy's
generator, stands at a state that depends on a seed alone while it draws, and where the training
left it otherwise. So every rank draws the same, a pass can be repeated, and the training's own
randomness does not depend on how far ahead data is read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from diag.engine.process import Process

T = TypeVar("T")
# Torch seeds its generator with 32 bits: an odd number that keeps workers far apart in them.
_WORKER_STRIDE = 0x9E3779B1


class Source(Protocol):
    """A random number generator others draw from."""

    def fresh(self, seed: int) -> Any:
        """Its state once seeded."""

    def swap(self, state: Any) -> Any:
        """Put it into `state`; the one it was in."""


class TorchSource:
    """A torch generator; by default torch's global one for the CPU."""

    def __init__(self, generator: torch.Generator = torch.default_generator) -> None:
        self.generator = generator

    def fresh(self, seed: int) -> torch.Tensor:
        return torch.Generator(self.generator.device).manual_seed(seed).get_state()

    def swap(self, state: torch.Tensor) -> torch.Tensor:
        old = self.generator.get_state()
        self.generator.set_state(state)
        return old


class PythonSource:
    """The module `random`."""

    def fresh(self, seed: int) -> Any:
        return random.Random(seed).getstate()

    def swap(self, state: Any) -> Any:
        old = random.getstate()
        random.setstate(state)
        return old


class NumpySource:
    """`numpy.random`'s global generator."""

    def fresh(self, seed: int) -> Any:
        return np.random.MT19937(seed)

    def swap(self, state: Any) -> Any:
        # Another bit generator in its place takes 2 µs; copying states takes 300.
        old = np.random.get_bit_generator()  # type: ignore[attr-defined]
        np.random.set_bit_generator(state)  # type: ignore[attr-defined]
        return old


def sources_of(*holders: Any, torch_only: bool = False) -> list[Source]:
    """The global generators, and those the holders have as `generator`."""
    everyones: list[Source] = [TorchSource()]
    if not torch_only:
        everyones += [PythonSource(), NumpySource()]
    own = {
        id(generator): generator
        for holder in holders
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator)
    }
    return [*everyones, *map(TorchSource, own.values())]


def drawn_apart(items: Iterable[T], sources: Sequence[Source], seed: int) -> Iterator[T]:
    """`items`, each drawn in states of their own that begin at `seed`.

    In a loader's worker, where nobody else draws, the generators are seeded once instead; each
    worker differently.
    """
    worker = get_worker_info()
    states = _seeded(sources, seed + (_WORKER_STRIDE * worker.id if worker is not None else 0))
    if worker is not None:
        for source, state in zip(sources, states, strict=True):
            source.swap(state)
        return iter(items)
    return _apart(items, sources, states)


def _apart(items: Iterable[T], sources: Sequence[Source], states: list[Any]) -> Iterator[T]:
    with _swapped(sources, states):
        iterator = iter(items)
    while True:
        with _swapped(sources, states):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def preserved(*generators: torch.Generator | None) -> Iterator[None]:
    """What is drawn inside leaves torch's global generator and these as they were."""
    kept = [torch.default_generator, *(g for g in generators if g is not None)]
    states = [generator.get_state() for generator in kept]
    try:
        yield
    finally:
        for generator, state in zip(kept, states, strict=True):
            generator.set_state(state)


def agreed_seed(process: Process, seed: int) -> int:
    """Rank 0's `seed`, on every rank. Collective."""
    if not process.distributed:
        return seed
    device = process.device if process.backend == "nccl" else torch.device("cpu")
    told = torch.tensor(seed, dtype=torch.int64, device=device)
    dist.broadcast(told, src=0)
    return int(told)


@contextmanager
def _swapped(sources: Sequence[Source], states: list[Any]) -> Iterator[None]:
    outside = [source.swap(state) for source, state in zip(sources, states, strict=True)]
    try:
        yield
    finally:
        states[:] = [source.swap(state) for source, state in zip(sources, outside, strict=True)]


def _seeded(sources: Sequence[Source], seed: int) -> list[Any]:
    return [source.fresh(seed % (1 << 63)) for source in sources]
