"""Map-style datasets: the index lists are divided, before anything is read.

So nothing has to be read ahead: a list of indices is looked at to know that it is the last one,
and the data itself is read when the training asks for it (or when its workers do).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from diag.engine.data import randomness
from diag.engine.data.reading import copied, opened
from diag.engine.data.sharding import Share, Step, num_batches, rounds
from diag.errors import DiagError


class SeededShuffle(Sampler[int]):
    """A RandomSampler in the order that seed + epoch gives, whatever else draws random numbers.

    It is the order of `torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))`,
    as with torch's DistributedSampler. The user's sampler is asked for all the rest.
    """

    def __init__(self, sampler: RandomSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        drawn = self.sampler
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % (1 << 63))
        return iter(
            RandomSampler(drawn.data_source, drawn.replacement, drawn.num_samples, generator)
        )

    def __len__(self) -> int:
        return len(self.sampler)


@dataclass
class _Plan:
    """One pass: where it begins, and what was drawn and not yet delivered, oldest first."""

    epoch: int = 0
    skip: int = 0
    drawn: deque[Step] = field(default_factory=deque)
    claimed: bool = False


class RankSampler(Sampler[Any]):
    """Draws the index lists of some ranks, in the place of the user's (batch) sampler.

    Args:
        draws: the single process's stream: the user's batch sampler, or its stand-in.
        ranks: those it draws for.
        seed: what the draws' randomness depends on, with the epoch; None: they have none.
        sources: the random generators they may use.
    """

    def __init__(
        self,
        draws: Iterable[Any],
        share: Share,
        ranks: Sequence[int],
        seed: int | None = None,
        sources: Sequence[randomness.Source] = (),
    ) -> None:
        self.batch_sampler = draws
        self.share = share
        self.ranks = ranks
        self.sources = sources
        self.seed = seed
        self._plan = _Plan()

    @property
    def sampler(self) -> Any:
        return getattr(self.batch_sampler, "sampler", self.batch_sampler)

    @property
    def batch_size(self) -> int | None:
        return self.share.full

    @property
    def drop_last(self) -> bool:
        return self.share.drop_last

    @property
    def split_batches(self) -> bool:
        return self.share.split

    @property
    def even_batches(self) -> bool:
        """May be changed between passes."""
        return self.share.even

    @even_batches.setter
    def even_batches(self, even: bool) -> None:
        self.share = replace(self.share, even=even)

    def begin(self, epoch: int, skip: int) -> deque[Step]:
        """The next iteration is this pass; what it draws comes into the queue, without its parts."""
        self._plan = _Plan(epoch, skip)
        return self._plan.drawn

    def __iter__(self) -> Iterator[Any]:
        # Torch's loaders begin an iteration they never use; scripts look at the sampler of a
        # loader under way. The pass is the iteration that is the first to draw.
        plan = _Plan(self._plan.epoch) if self._plan.claimed else self._plan
        plan.claimed = True
        for taken in self._rounds(plan):
            for step in taken:
                if step.rank in self.ranks:
                    plan.drawn.append(step._replace(part=None))
                    yield step.part

    def _rounds(self, plan: _Plan) -> Iterator[tuple[Step, ...]]:
        taken = rounds(self.batch_sampler, self.share, plan.skip)
        if self.seed is None or not self.sources:
            return taken
        return randomness.drawn_apart(taken, self.sources, self.seed + plan.epoch)

    def num_batches(self, rank: int, skip: int = 0) -> int:
        """How many parts that rank gets. Raises TypeError if the user's sampler has no length."""
        draws: Any = self.batch_sampler
        return num_batches(len(draws) - skip, self.share, rank, _last_draw(draws))

    def __len__(self) -> int:
        return sum(map(self.num_batches, self.ranks))


class IndexSource:
    """Batches of a map-style dataset."""

    exact = True

    def __init__(
        self, loader: DataLoader[Any], sampler: RankSampler, shuffle: SeededShuffle | None = None
    ) -> None:
        place = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self.reader = copied(loader, **{place: sampler})
        self._sampler = sampler
        self._shuffle = shuffle
        self._in_order = not loader.num_workers or getattr(loader, "in_order", True)

    @property
    def share(self) -> Share:
        return self._sampler.share

    @share.setter
    def share(self, share: Share) -> None:
        self._sampler.share = share

    @property
    def seed(self) -> int | None:
        return self._sampler.seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        self._sampler.seed = seed
        if self._shuffle is not None and seed is not None:
            self._shuffle.seed = seed

    def deliveries(self, epoch: int, skip: int) -> Generator[Step, None, None]:
        if self._shuffle is not None:
            self._shuffle.epoch = epoch
        drawn = self._sampler.begin(epoch, skip)
        for batch in opened(self.reader, resumes=skip > 0):
            if not drawn:
                raise DiagError(
                    "sampler-not-used",
                    f"{type(self.reader).__name__} delivers batches that its sampler did not draw, "
                    "so they cannot be divided among the ranks.",
                    hint="A subclass of DataLoader has to iterate by super().__iter__().",
                )
            step = drawn.popleft()._replace(part=batch)
            # Out of order, its sizes may be another batch's.
            yield step if self._in_order else step._replace(local=None, total=None, real=None)

    def num_batches(self, rank: int, skip: int = 0) -> int:
        return self._sampler.num_batches(rank, skip)


def _last_draw(draws: Any) -> int | None:
    """Samples of the last draw where torch's own BatchSampler tells; None: a full one, supposedly."""
    if type(draws) is not BatchSampler or draws.drop_last:
        return None
    length = len(draws.sampler)  # type: ignore[arg-type]
    return length % draws.batch_size or draws.batch_size
