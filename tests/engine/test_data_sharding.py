"""The division of a stream among ranks: against a specification, against Accelerate, and its laws."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import pytest
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from diag.engine.data.lookahead import END, FAILED, with_next
from diag.engine.data.sharding import Round, Share, Step, num_batches, rounds
from diag.errors import DiagError

Batches = list[list[int]]
Grid = tuple[int, int, int, bool, bool, bool]


def grid(longest: int = 26) -> Iterator[Grid]:
    """(length, batch size, ranks, split, even, drop_last)."""
    for length, size, ranks in itertools.product(range(longest), range(1, 5), range(1, 5)):
        for split, even, drop in itertools.product((False, True), repeat=3):
            if not split or size % ranks == 0:
                yield length, size, ranks, split, even, drop


def stream(length: int, size: int, drop: bool) -> Batches:
    return list(BatchSampler(range(length), size, drop))


def share_of(case: Grid) -> Share:
    _, size, ranks, split, even, drop = case
    return Share(ranks, split, even, drop, size)


def parts_of(taken: list[Round], rank: int) -> Batches:
    return [step.part for steps in taken for step in steps if step.rank == rank]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return [sample for part in parts for sample in part]


def specified(case: Grid) -> list[Batches]:
    """By rank, written down the other way round: from the samples each rank must end up with."""
    length, size, ranks, split, even, drop = case
    draws = stream(length, size, drop)
    even = even and ranks > 1
    if split:
        piece = size // ranks
        padded = [
            [*draw, *islice(cycle(draws[0]), size - len(draw))] if even else draw for draw in draws
        ]
        cut = [[draw[r * piece : (r + 1) * piece] for draw in padded] for r in range(ranks)]
        return [[part for part in parts if part] for parts in cut]
    if drop:
        draws = draws[: len(draws) // ranks * ranks]
    elif even and draws:
        samples = joined(draws)
        needed = -(-len(draws) // ranks) * ranks * size - len(samples)
        beginning = joined(draws[:ranks])
        draws = list(BatchSampler([*samples, *islice(cycle(beginning), needed)], size, False))
    return [draws[rank::ranks] for rank in range(ranks)]


def test_every_rank_gets_what_the_specification_says() -> None:
    for case in grid():
        taken = list(rounds(stream(case[0], case[1], case[5]), share_of(case)))
        assert [parts_of(taken, rank) for rank in range(case[2])] == specified(case), case


def test_the_length_is_known_without_drawing() -> None:
    for case in grid():
        draws = stream(case[0], case[1], case[5])
        last = len(draws[-1]) if draws else None
        counts = [num_batches(len(draws), share_of(case), r, last) for r in range(case[2])]
        assert counts == [len(parts) for parts in specified(case)], case


def test_accelerates_batch_sampler_shards_alike() -> None:
    for case in grid():
        length, size, ranks, split, even, drop = case
        if ranks == 1:  # there Accelerate does not shard
            continue
        taken = list(rounds(stream(length, size, drop), share_of(case)))
        for rank in range(ranks):
            sampler = BatchSampler(range(length), size, drop)
            peer = BatchSamplerShard(sampler, ranks, rank, split, even)
            assert parts_of(taken, rank) == list(peer), case


def test_accelerates_iterable_shard_divides_alike() -> None:
    for case in grid():
        length, size, ranks, split, even, drop = case
        if ranks == 1 or not even:  # it always fills up
            continue
        # Here a whole round is dropped: that of the last, short batch.
        draws = stream(length, size, drop)
        taken = list(rounds(draws, share_of(case)))
        for rank in range(ranks):
            peer = IterableDatasetShard(range(length), size, drop, ranks, rank, split)
            assert joined(parts_of(taken, rank)) == list(peer), case


cases = st.tuples(
    st.integers(0, 60),
    st.integers(1, 9),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
).map(lambda c: (c[0], c[1] * c[2] if c[3] else c[1], *c[2:]))


@settings(max_examples=150, deadline=None)
@given(cases)
def test_no_sample_is_lost_or_counted_twice(case: Grid) -> None:
    draws = stream(case[0], case[1], case[5])
    kept = draws[: len(draws) // case[2] * case[2]] if case[5] and not case[3] else draws
    taken = list(rounds(draws, share_of(case)))
    real: list[int] = []
    for steps in taken:
        assert {step.real for step in steps} == {steps[0].real}
        real += joined(step.part for step in steps)[: steps[0].real]
    assert real == joined(kept)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_what_a_step_says_of_the_others_is_true(case: Grid) -> None:
    taken = list(rounds(stream(case[0], case[1], case[5]), share_of(case)))
    for at, steps in enumerate(taken):
        later = taken[at + 1] if at + 1 < len(taken) else ()
        for rank, step in enumerate(steps):
            assert step.rank == rank
            assert step.local == len(step.part)
            assert step.total == sum(len(other.part) for other in steps)
            assert step.last is (rank >= len(later))
            assert step.last_somewhere is (len(later) < case[2])
            assert step.ends is (not later)
            assert step.everywhere is (len(steps) == case[2])


@settings(max_examples=150, deadline=None)
@given(cases)
def test_even_batches_are_even(case: Grid) -> None:
    length, size, ranks, split, even, drop = case
    taken = list(rounds(stream(length, size, drop), share_of(case)))
    if even and ranks > 1:
        full = size // ranks if split else size
        assert all([len(step.part) for step in steps] == [full] * ranks for steps in taken)


@settings(max_examples=150, deadline=None)
@given(cases, st.integers(0, 70))
def test_skipping_leaves_out_what_comes_first_and_nothing_else(case: Grid, skip: int) -> None:
    share = share_of(case)
    draws = stream(case[0], case[1], case[5])
    whole = skip // share.draws_per_round
    begun = list(rounds(draws, share, whole * share.draws_per_round))
    assert begun == list(rounds(draws, share))[whole:]
    # And between two rounds, as after a change of the number of ranks:
    rest = rounds(draws, share, skip)
    real = [s for steps in rest for s in joined(x.part for x in steps)[: steps[0].real]]
    left = draws[skip:]
    kept = left[: len(left) // case[2] * case[2]] if case[5] and not case[3] else left
    assert real == joined(kept)


def test_draws_of_no_nominal_size_are_repeated_whole() -> None:
    share = Share(num_ranks=3)
    taken = list(rounds([[0], [1, 2], [3], [4, 5, 6]], share))
    assert [[step.part for step in steps] for steps in taken] == [
        [[0], [1, 2], [3]],
        [[4, 5, 6], [0], [1, 2]],
    ]
    assert taken[1][0][2:5] == (3, 6, 3)


def test_draws_that_are_no_lists_are_passed_on_as_they_are() -> None:
    taken = list(rounds("abc", Share(num_ranks=2, sized=False)))
    assert [[step.part for step in steps] for steps in taken] == [["a", "b"], ["c", "a"]]
    assert taken[1][0] == Step("c", 0, last=True, last_somewhere=True, ends=True)


def test_a_short_draw_in_the_middle_is_neither_lost_nor_filled_up() -> None:
    """Samplers that batch by length yield one per bucket; Accelerate drops what is beside it."""
    draws = [[0, 1], [2], [3, 4], [5, 6], [7]]
    taken = list(rounds(draws, Share(num_ranks=2, full=2)))
    parts = [[step.part for step in steps] for steps in taken]
    assert parts == [[[0, 1], [2]], [[3, 4], [5, 6]], [[7, 0], [1, 2]]]
    assert [steps[0].total for steps in taken] == [3, 4, 4]
    assert joined(BatchSamplerShard(Listed(draws, 2), 2, 0)) == [3, 4, 7, 0]


def test_a_short_draw_in_the_middle_is_filled_up_where_it_is_split() -> None:
    taken = list(rounds([[0, 1, 2, 3], [4], [5, 6, 7, 8]], Share(2, split=True, full=4)))
    parts = [[step.part for step in steps] for steps in taken]
    assert parts == [[[0, 1], [2, 3]], [[4, 0], [1, 2]], [[5, 6], [7, 8]]]
    assert [steps[0].real for steps in taken] == [4, 1, 4]
    with pytest.raises(DiagError, match="batch of 1 before the last one gives only 1 of 2 ranks"):
        list(rounds([[0, 1], [2], [3, 4]], Share(2, split=True, even=False, full=2)))


def test_a_draw_beyond_the_batch_size_is_split_whole() -> None:
    taken = list(rounds([[0, 1, 2, 3, 4], [5, 6]], Share(num_ranks=2, split=True, full=2)))
    assert [[step.part for step in steps] for steps in taken] == [[[0, 1, 2], [3, 4]], [[5], [6]]]


class Listed(BatchSampler):
    def __init__(self, draws: Batches, batch_size: int) -> None:
        self.draws, self.batch_size, self.drop_last = draws, batch_size, False

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.draws)

    def __len__(self) -> int:
        return len(self.draws)


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(DiagError, match="batch of 10 in 4") as raised:
        Share(num_ranks=4, split=True).of(10, drop_last=False, sized=True)
    assert raised.value.slug == "batch-not-divisible"
    with pytest.raises(DiagError, match="no known size"):
        Share(num_ranks=4, split=True).of(None, drop_last=False, sized=True)


def test_an_endless_stream_is_divided_as_it_comes() -> None:
    draws = ([at, at + 1] for at in itertools.count(step=2))
    first = list(islice(rounds(draws, Share(num_ranks=2, full=2)), 2))
    assert parts_of(first, 1) == [[2, 3], [6, 7]]


def failing(after: int) -> Iterator[list[int]]:
    yield from ([at] for at in range(after))
    raise ValueError("no more")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("even", [False, True])
def test_an_error_comes_where_it_belongs(ranks: int, even: bool) -> None:
    taken: list[Round] = []
    with pytest.raises(ValueError, match="no more"):
        taken.extend(rounds(failing(4), Share(ranks, even=even, full=1)))
    assert joined(parts_of(taken, 0)) == list(range(0, 4, ranks))
    assert not any(step.last_somewhere for steps in taken for step in steps)


def test_looking_ahead() -> None:
    assert list(with_next([])) == []
    assert list(with_next("ab")) == [("a", "b"), ("b", END)]
    assert list(with_next([None, None])) == [(None, None), (None, END)]
    seen = with_next(failing(1))
    assert next(seen) == ([0], FAILED)
    with pytest.raises(ValueError, match="no more"):
        next(seen)
