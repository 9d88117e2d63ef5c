"""Random orders: the same on every rank and for every number of ranks, a function of seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from diag.engine.data import randomness
from diag.errors import DiagError
from helpers.loaders import Numbers, Stream, every_rank, prepared, values

LENGTH = 12
Make = Callable[[], DataLoader[Any]]


def numbers(**arguments: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(LENGTH), **({"batch_size": 2} | arguments))


class EveryGenerator(Sampler[int]):
    """Draws from torch's, Python's and numpy's generator, a little before each index."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(LENGTH):
            drawn = torch.rand(()).item() + random.random() + np.random.rand()
            yield int(drawn * 1000) % LENGTH

    def __len__(self) -> int:
        return LENGTH


class Shuffled(BatchSampler):
    """A batch sampler of the user's own: whole batches in random order."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        random.shuffle(batches)
        return iter(batches)


LOADERS: dict[str, Make] = {
    "shuffle": lambda: numbers(shuffle=True),
    "shuffle with a generator": lambda: numbers(shuffle=True, generator=torch.Generator()),
    "with replacement": lambda: numbers(
        sampler=RandomSampler(Numbers(LENGTH), replacement=True, num_samples=LENGTH)
    ),
    "weighted": lambda: numbers(sampler=WeightedRandomSampler(torch.rand(LENGTH) + 1, LENGTH)),
    "subset": lambda: numbers(sampler=SubsetRandomSampler(range(LENGTH))),
    "subset with a generator": lambda: numbers(
        sampler=SubsetRandomSampler(range(LENGTH), generator=torch.Generator())
    ),
    "the user's sampler": lambda: numbers(sampler=EveryGenerator()),
    "the user's batch sampler": lambda: DataLoader(
        Numbers(LENGTH), batch_sampler=Shuffled(RandomSampler(Numbers(LENGTH)), 2, False)
    ),
    "without batches": lambda: DataLoader(OneElement(), batch_size=None, shuffle=True),
}


class OneElement(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index])


def disturb(seed: int) -> None:
    """Each rank's generators stand elsewhere."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def joined(make: Make, ranks: int, seed: int, workers: int = 0, **options: Any) -> list[list[int]]:
    """Two epochs in the single process's order, from ranks that draw each by itself."""
    torch.manual_seed(0)
    loader = make()
    by_rank = []
    for rank, one in enumerate(every_rank(loader, ranks, data_seed=seed, **options)):
        disturb(100 + rank)
        by_rank.append([values(one) for _ in range(2)])
    epochs = [zip(*(epochs[at] for epochs in by_rank), strict=True) for at in range(2)]
    return [[x for step in epoch for batch in step for x in batch] for epoch in epochs]


@pytest.mark.parametrize("name", LOADERS)
def test_every_number_of_ranks_has_the_single_processs_order(name: str) -> None:
    alone = joined(LOADERS[name], 1, seed=5)
    assert alone[0] != alone[1]
    for ranks in (2, 3):
        assert joined(LOADERS[name], ranks, seed=5) == alone
    if name != "without batches":
        assert joined(LOADERS[name], 2, seed=5, split_batches=True) == alone
    assert joined(LOADERS[name], 2, seed=6) != alone


@pytest.mark.parametrize("name", LOADERS)
def test_drawing_leaves_the_trainings_generators_alone(name: str) -> None:
    disturb(7)
    before = torch.rand(()).item(), random.random(), np.random.rand()
    loader = prepared(LOADERS[name](), 1, 2)
    disturb(7)
    generator = loader.generator
    state = generator.get_state() if generator is not None else None
    for at, _ in enumerate(loader):
        if at == 0:  # torch's loader draws a seed for its workers, as without the engine
            disturb(7)
            state = generator.get_state() if generator is not None else None
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == before
    if generator is not None:
        assert torch.equal(generator.get_state(), state)


def test_a_generator_of_a_samplers_own_is_left_alone_too() -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = SubsetRandomSampler(range(LENGTH), generator=generator)
    before = generator.get_state()
    first = values(prepared(numbers(sampler=sampler)))
    assert torch.equal(generator.get_state(), before)
    assert values(prepared(numbers(sampler=sampler), data_seed=6)) != first


def test_the_order_is_accelerates_and_the_distributed_samplers() -> None:
    loader = prepared(numbers(shuffle=True), data_seed=42)
    peer = SeedableRandomSampler(Numbers(LENGTH), data_seed=42)
    for epoch in range(2):
        other = DistributedSampler(Numbers(LENGTH), 1, 0, seed=42)
        other.set_epoch(epoch)
        ours = [x for batch in values(loader) for x in batch]
        assert ours == list(peer) == list(other)


def test_without_the_seedable_sampler_ranks_still_agree() -> None:
    options = {"use_seedable_sampler": False}
    alone = joined(LOADERS["shuffle"], 1, 5, **options)
    assert joined(LOADERS["shuffle"], 3, 5, **options) == alone
    assert alone != joined(LOADERS["shuffle"], 1, 5)


def test_the_users_sampler_stays_the_users() -> None:
    """What a script changes on its sampler between epochs counts."""
    sampler = WeightedRandomSampler([1.0] * LENGTH, 4)
    loader = prepared(numbers(sampler=sampler))
    assert len(values(loader)) == 2
    sampler.weights = torch.tensor([0.0] * (LENGTH - 1) + [1.0]).double()
    assert values(loader) == [[11, 11], [11, 11]]


class NoisyStream(IterableDataset[Any]):
    """Shuffles with Python's generator and augments with torch's and numpy's."""

    def __iter__(self) -> Iterator[Any]:
        order = list(range(LENGTH))
        random.shuffle(order)
        for at in order:
            yield at, torch.rand(()).item() + np.random.rand()


class OwnGenerator(NoisyStream):
    def __init__(self) -> None:
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[Any]:
        for at in torch.randperm(LENGTH, generator=self.generator).tolist():
            yield at, 0.0


@pytest.mark.parametrize("dataset", [NoisyStream(), OwnGenerator()])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_random_stream_is_the_same_on_every_rank(dataset: Any, workers: int) -> None:
    def passes(ranks: int) -> list[Any]:
        loader = DataLoader(dataset, batch_size=2, num_workers=workers)
        by_rank = []
        for rank, one in enumerate(every_rank(loader, ranks)):
            disturb(rank)
            by_rank.append([[(i.tolist(), x.tolist()) for i, x in one] for _ in range(2)])
        return [
            [batch for step in zip(*(p[epoch] for p in by_rank), strict=True) for batch in step]
            for epoch in range(2)
        ]

    alone = passes(1)
    assert passes(2) == passes(3) == alone
    assert alone[0] != alone[1]


def test_the_workers_of_a_stream_draw_different_numbers() -> None:
    loader = prepared(DataLoader(NoisyStream(), batch_size=LENGTH, num_workers=2))
    first, second = ([i.tolist(), x.tolist()] for i, x in loader)
    assert first[0] != second[0]
    assert set(first[1]).isdisjoint(second[1])


def test_drawing_apart() -> None:
    def draw() -> Iterator[float]:
        while True:
            yield torch.rand(()).item() + random.random() + np.random.rand()

    def drawn(seed: int) -> list[float]:
        apart = randomness.drawn_apart(draw(), randomness.sources_of(), seed)
        return [next(apart) for _ in range(3)]

    disturb(1)
    expected = torch.rand(()).item(), random.random(), np.random.rand()
    disturb(1)
    first = drawn(1)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == expected
    assert drawn(1) == first != drawn(2)
    assert len(set(first)) == 3


# -- epochs --------------------------------------------------------------------------------


class Curriculum(Sampler[int]):
    """A sampler that wants to know the epoch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter([self.epoch] * 4)

    def __len__(self) -> int:
        return 4


class EpochStream(Stream):
    """The same of a dataset; `epoch` is not to be seen."""

    at = -1

    def set_epoch(self, epoch: int) -> None:
        self.at = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([self.at] * 4)


class EpochNumbers(Numbers):
    at = -1

    def set_epoch(self, epoch: int) -> None:
        self.at = epoch

    def __getitem__(self, index: int) -> int:
        return self.at


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        (EpochNumbers(4), {}),
        (EpochNumbers(4), {"num_workers": 1}),
        (EpochStream(4), {}),
        (EpochStream(4), {"num_workers": 1}),
        (EpochStream(4), {"num_workers": 1, "persistent_workers": True}),
    ],
)
def test_a_dataset_is_told_the_epoch(dataset: Any, options: dict[str, Any]) -> None:
    loader = prepared(DataLoader(dataset, batch_size=2, **options), 1, 2)
    assert [values(loader) for _ in range(3)] == [[[0, 0]], [[1, 1]], [[2, 2]]]
    loader.set_epoch(9)
    assert values(loader) == [[9, 9]]
    assert values(loader) == [[10, 10]]


@pytest.mark.parametrize("batch_sampler", [False, True])
def test_a_sampler_is_told_the_epoch_and_heard_where_the_script_sets_it(
    batch_sampler: bool,
) -> None:
    sampler = Curriculum()
    if batch_sampler:
        user = DataLoader(Numbers(50), batch_sampler=BatchSampler(sampler, 2, False))
    else:
        user = numbers(sampler=sampler)
    loader = prepared(user, 1, 2)
    assert values(loader) == [[0, 0]]
    assert values(loader) == [[1, 1]]
    sampler.set_epoch(7)  # as scripts do with torch's DistributedSampler
    assert values(loader) == [[7, 7]]
    assert loader.epoch == 8
    assert values(loader) == [[8, 8]]
    assert sampler.told == [0, 1, 7, 7, 8]
    sampler.epoch = 0  # another process, which goes on at a state
    restored = prepared(user, 1, 2)
    restored.load_state_dict(loader.state_dict())
    assert values(restored) == [[9, 9]]


def test_a_distributed_sampler_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def by_hand(rank: int, epoch: int) -> list[list[int]]:
        sampler = DistributedSampler(Numbers(7), 2, rank, seed=3)
        sampler.set_epoch(epoch)
        return list(BatchSampler(sampler, 2, False))

    for rank in range(2):
        sampler = DistributedSampler(Numbers(7), 2, rank, seed=3)
        loader = prepared(numbers(sampler=sampler), rank, 2, dispatch_batches=True)
        for epoch in range(2):
            assert values(loader) == by_hand(rank, epoch)
        assert len(loader) == 2
        for batch in loader:
            assert (loader.local_samples, loader.global_samples) == (len(batch), 2 * len(batch))
            assert loader.remainder == -1
        assert loader.total_batch_size == 4
    assert "divides the data among 2 ranks already" in caplog.text


def test_a_sampler_made_for_another_job_is_refused() -> None:
    for replicas, rank in ((3, 0), (2, 1)):
        sampler = DistributedSampler(Numbers(7), replicas, rank)
        with pytest.raises(DiagError, match=f"share {rank} of {replicas}, but this is rank 0 of 2"):
            prepared(numbers(sampler=sampler), 0, 2)
    # One share of one is the whole.
    whole = DistributedSampler(Numbers(LENGTH), 1, 0, shuffle=False)
    assert values(prepared(numbers(sampler=whole), 1, 2))[0] == [2, 3]
