"""One stream of batches, as a single process would take them, divided among N ranks.

The words of this room: a *draw* is one item of the single process's stream (a list of indices or
of samples, or an opaque item where the loader does not batch); a *round* is what all ranks take
in one step; a *part* is what one of them takes of it.

- whole draws (the default): rank r takes draw s·N + r in round s;
- split: each draw is a round, cut into N consecutive parts of B/N.

Everything here is pure: every rank computes every rank's part, so that all sizes are known
without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

from diag.engine.data.lookahead import END, with_next
from diag.errors import DiagError


@dataclass(frozen=True)
class Share:
    """How draws are divided.

    Attributes:
        num_ranks: N.
        split: cut each draw in N.
        even: fill the last round up by cycling from the stream's beginning, so that every rank
            has a full part in it. A single process is never filled up.
        drop_last: leave out a last round of fewer than N draws.
        full: samples of a full draw (B); None: draws have no nominal size.
        sized: a draw is a sequence of samples; else nothing is known about what it holds.
        replicas: the draws are one of so many equal shares already (the user's own sampler
            divides); num_ranks is 1 then.
    """

    num_ranks: int = 1
    split: bool = False
    even: bool = True
    drop_last: bool = False
    full: int | None = None
    sized: bool = True
    replicas: int = 1

    def of(self, full: int | None, drop_last: bool, sized: bool) -> Share:
        """This division, for a loader with such draws.

        Raises:
            DiagError: they cannot be cut in N equal parts.
        """
        if self.split and (full is None or not sized):
            raise DiagError(
                "batch-size-unknown",
                "split_batches cuts each batch of the loader in equal parts, but this loader's "
                "batches have no known size (batch_size=None, or a batch sampler without one).",
                hint="Give the batch sampler a batch_size, or use split_batches=False.",
            )
        if self.split and full and full % self.num_ranks:
            raise DiagError(
                "batch-not-divisible",
                f"split_batches cannot cut a batch of {full} in {self.num_ranks} equal parts.",
                hint=f"Use a batch size that is a multiple of {self.num_ranks}, "
                "or split_batches=False.",
            )
        return replace(self, full=full, drop_last=drop_last, sized=sized)

    @property
    def part_size(self) -> int | None:
        """Samples of a full part."""
        return self.full // self.num_ranks if self.split and self.full else self.full

    @property
    def draws_per_round(self) -> int:
        return 1 if self.split else self.num_ranks


class Step(NamedTuple):
    """One rank's part of a round, and what is known of the others'.

    A named tuple, so that torch's workers send it and pin the tensors in it.

    Attributes:
        part: what the rank takes.
        rank: whose it is.
        local, total: samples in the part, and in all ranks' together, repeated ones included;
            None where draws are not sized.
        real: of `total`, those that do not repeat others to fill up.
        last: the rank gets no part after this one.
        last_somewhere: some rank gets none. Equal on all ranks.
        ends: no rank gets any.
        everywhere: every rank has a part in this round.
    """

    part: Any
    rank: int = 0
    local: int | None = None
    total: int | None = None
    real: int | None = None
    last: bool = False
    last_somewhere: bool = False
    ends: bool = False
    everywhere: bool = True


Round = tuple[Step, ...]


def rounds(draws: Iterable[Any], share: Share, skip: int = 0) -> Iterator[Round]:
    """The rounds of a stream, each with the parts of those ranks that get one.

    Args:
        skip: leave out the first so many draws; what fills the last round is still the beginning.

    Raises:
        DiagError: a draw before the last one is too short to be split, and is not to be filled up.
    """
    iterator = iter(draws)
    fills = share.even and share.num_ranks > 1
    beginning = list(islice(iterator, share.draws_per_round)) if fills else []
    remaining = islice(chain(beginning, iterator), skip, None)
    for parts, following in with_next(_cut(remaining, share)):
        real = parts
        if fills and (share.split or following is END):
            parts = _filled(parts, beginning, share)
        elif len(parts) < share.num_ranks and following is not END:
            raise _too_short(parts, share)
        # What follows is filled up too; where it is not known, it failed, and so goes on.
        followers = 0 if following is END else share.num_ranks
        if not fills and isinstance(following, list):
            followers = len(following)
        yield tuple(_steps(parts, real, followers, share))


def num_batches(num_draws: int, share: Share, rank: int, last_draw: int | None = None) -> int:
    """How many parts one rank gets of so many draws.

    Args:
        last_draw: samples of the last one; None: a full one.
    """
    if num_draws <= 0:
        return 0
    if share.split:
        size = share.part_size
        goes_without = last_draw is not None and size is not None and last_draw <= rank * size
        return num_draws - (goes_without and not share.even)
    whole, extra = divmod(num_draws, share.num_ranks)
    if share.drop_last or not extra:
        return whole
    return whole + (share.even or rank < extra)


def _cut(draws: Iterable[Any], share: Share) -> Iterator[list[Any]]:
    """The parts of each round, before anything is filled up."""
    if share.split:
        for draw in draws:
            # A sampler may draw more than its batch size; nothing of it may be lost.
            size = -(-max(len(draw), share.full or 0) // share.num_ranks)
            yield [draw[at : at + size] for at in range(0, len(draw), size)] or [draw]
        return
    iterator = iter(draws)
    while parts := list(islice(iterator, share.num_ranks)):
        if len(parts) == share.num_ranks or not share.drop_last:
            yield parts


def _filled(parts: list[Any], beginning: Sequence[Any], share: Share) -> list[Any]:
    """A full part for every rank, by repeating the stream's first samples (or draws)."""
    size = share.part_size
    missing = share.num_ranks - len(parts)
    if size is None:
        return [*parts, *islice(cycle(beginning), missing)]
    samples = cycle(chain.from_iterable(beginning))
    *whole, tail = parts
    if len(tail) < size:
        tail = [*tail, *islice(samples, size - len(tail))]
    return [*whole, tail, *(list(islice(samples, size)) for _ in range(missing))]


def _too_short(parts: Sequence[Any], share: Share) -> DiagError:
    return DiagError(
        "batch-not-divisible",
        f"split_batches: a batch of {sum(map(len, parts))} before the last one gives only "
        f"{len(parts)} of {share.num_ranks} ranks a part of {share.part_size}.",
        hint="Use even_batches=True, which fills it up, or split_batches=False.",
    )


def _steps(
    parts: Sequence[Any], real: Sequence[Any], followers: int, share: Share
) -> Iterator[Step]:
    sizes: Sequence[int | None] = [None] * len(parts)
    total = count = None
    if share.sized:
        sizes = [len(part) for part in parts]
        total = sum(map(len, parts)) * share.replicas
        # Whoever divides outside may have repeated samples of its own.
        count = sum(map(len, real)) if share.replicas == 1 else None
    last_somewhere, ends = followers < share.num_ranks, not followers
    everywhere = len(parts) == share.num_ranks
    for rank, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        last = rank >= followers
        yield Step(part, rank, size, total, count, last, last_somewhere, ends, everywhere)
