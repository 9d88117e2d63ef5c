"""Iterable datasets: every reader goes through the whole stream and keeps its ranks' samples.

The dataset draws its random numbers from a state of its own (see `randomness`), so that all ranks
see the same stream, a pass can be repeated, and reading one round ahead, which is how the last
one is known, does not touch the training's generators.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diag.engine.data import randomness
from diag.engine.data.lookahead import END, with_next
from diag.engine.data.reading import copied, opened
from diag.engine.data.sharding import Round, Share, Step, num_batches, rounds


class StreamShard(IterableDataset[Round]):
    """The parts some ranks take of a user's iterable dataset, round by round, not yet collated.

    To a `worker_init_fn` it looks like the user's dataset: attributes are read from it and set
    on it.

    Args:
        batch_size: samples of a draw; None: the dataset's items are draws.
        ranks: those it reads for.
        shared: workers that live for several passes have to be told each pass's epoch.
    """

    def __init__(
        self,
        dataset: Any,
        share: Share,
        batch_size: int | None,
        ranks: Sequence[int],
        seed: int,
        shared: bool,
    ) -> None:
        told = torch.tensor([seed, 0])
        vars(self).update(
            _dataset=dataset,
            _share=share,
            _batch_size=batch_size,
            _ranks=ranks,
            _told=told.share_memory_() if shared else told,  # type: ignore[no-untyped-call]
        )

    def tell(self, seed: int, epoch: int) -> None:
        self._told.copy_(torch.tensor([seed, epoch]))

    def __iter__(self) -> Iterator[Round]:
        seed, epoch = self._told.tolist()
        dataset = self._dataset
        if get_worker_info() is not None and callable(getattr(dataset, "set_epoch", None)):
            dataset.set_epoch(epoch)  # a worker's copy may be older than this epoch
        sources = randomness.sources_of(dataset)
        return randomness.drawn_apart(self._kept(), sources, seed + epoch)

    def _kept(self) -> Iterator[Round]:
        draws = self._dataset
        if self._batch_size is not None:
            draws = _batched(draws, self._batch_size, self._share.drop_last)
        for taken in rounds(draws, self._share):
            yield tuple(step for step in taken if step.rank in self._ranks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_dataset" not in vars(self):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)


class _CollateParts:
    """The user's `collate_fn`, for each part of a round."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, taken: Round) -> Round:
        return tuple(step._replace(part=self.collate_fn(step.part)) for step in taken)


class StreamSource:
    """Batches of an iterable dataset.

    A pass that is taken up again reads what it skips. With several workers, each divides what it
    reads by itself and has a last round of its own. It is always filled up: ranks that miss a
    batch in the middle of an epoch would train on different rounds from then on.
    """

    exact = False  # a dataset may give more or fewer samples than it says

    def __init__(
        self, loader: DataLoader[Any], share: Share, ranks: Sequence[int], seed: int
    ) -> None:
        self.seed: int | None = seed
        self._several = loader.num_workers > 1
        share = replace(share, even=share.even or self._several)
        self._dataset: Any = loader.dataset
        self._batch_size = loader.batch_size
        self._shard = StreamShard(
            loader.dataset, share, loader.batch_size, ranks, seed, loader.persistent_workers
        )
        # The shard makes the batches: the loader passes on what it yields.
        self.reader = copied(
            loader,
            dataset=self._shard,
            batch_sampler=None,
            collate_fn=_CollateParts(loader.collate_fn),
        )

    @property
    def share(self) -> Share:
        share: Share = vars(self._shard)["_share"]
        return share

    @share.setter
    def share(self, share: Share) -> None:
        vars(self._shard).update(_share=replace(share, even=share.even or self._several))
        vars(self.reader).update(_iterator=None)  # living workers have the old one

    def deliveries(self, epoch: int, skip: int) -> Generator[Step, None, None]:
        assert self.seed is not None
        self._shard.tell(self.seed, epoch)
        taken = opened(self.reader, resumes=skip > 0)
        remaining: Iterator[Round] = islice(taken, skip // self.share.draws_per_round, None)
        if self._several:
            remaining = _ended_together(remaining)
        for steps in remaining:
            yield from steps

    def num_batches(self, rank: int, skip: int = 0) -> int:
        """Raises TypeError if the dataset has no length; with several workers an estimate."""
        length, size = len(self._dataset), self._batch_size or 1
        draws, left = divmod(length, size)
        if left and not self.share.drop_last:
            draws += 1
        rounds_skipped = skip // self.share.draws_per_round
        draws -= rounds_skipped * self.share.draws_per_round
        return num_batches(draws, self.share, rank, left or None)


class AsTheyCome:
    """Batches of a loader that divides itself among the ranks (torch's DataPipes do)."""

    exact = False

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.reader = copied(loader)
        self.share = Share(sized=False)
        self.seed: int | None = None

    def deliveries(self, epoch: int, skip: int) -> Generator[Step, None, None]:
        batches = islice(opened(self.reader, resumes=skip > 0), skip, None)
        for batch, following in with_next(batches):
            ends = following is END
            yield Step(batch, last=ends, last_somewhere=ends, ends=ends)

    def num_batches(self, rank: int, skip: int = 0) -> int:
        return max(0, len(self.reader) - skip)


def _batched(samples: Iterable[Any], size: int, drop_last: bool) -> Iterator[list[Any]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _ended_together(items: Iterable[Round]) -> Iterator[Round]:
    """Each worker knows its own end only; the pass ends with the last of them."""
    for steps, following in with_next(items):
        ends = following is END
        yield tuple(step._replace(last=ends, last_somewhere=ends, ends=ends) for step in steps)
