"""Taking an epoch up again: by a saved state, on another number of ranks, and by skipping."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from diag.engine.data import PreparedLoader, skip_first_batches
from diag.engine.data.progress import Progress
from diag.errors import DiagError
from helpers.loaders import Augmented, Numbers, SizedStream, Stream, every_rank, prepared, values


def shuffled(length: int = 23, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(length), **({"batch_size": 2, "shuffle": True} | arguments))


def stood_after(loader: PreparedLoader, batches: int) -> tuple[dict[str, Any], list[Any]]:
    """The state saved while batch `batches` is out, and all that comes after it, an epoch more."""
    state: dict[str, Any] = {}
    rest = []
    for at, batch in enumerate(loader, 1):
        if at == batches:
            state = loader.state_dict()
        if at > batches:
            rest.append(batch.tolist())
    return state, rest + values(loader)


MAKES: dict[str, Any] = {
    "shuffle": shuffled,
    "workers": lambda: shuffled(num_workers=2),
    "persistent workers": lambda: shuffled(num_workers=1, persistent_workers=True),
    "drawn by the user": lambda: shuffled(
        shuffle=False, sampler=RandomSampler(Numbers(23), replacement=True)
    ),
    "stream": lambda: DataLoader(Stream(23), batch_size=2),
    "stream and workers": lambda: DataLoader(Stream(23), batch_size=2, num_workers=2),
    "no batches": lambda: DataLoader(Tens(23), batch_size=None),
}


class Tens(Numbers):
    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index])


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_a_restored_loader_goes_on_where_the_saved_one_stood(name: str, batches: int) -> None:
    saved = prepared(MAKES[name](), 1, 2, data_seed=5)
    values(saved)  # the second epoch is the one that is interrupted
    state, rest = stood_after(saved, batches)
    restored = prepared(MAKES[name](), 1, 2, data_seed=8)
    restored.load_state_dict(state)
    taken_up = iter(restored)
    assert restored.epoch == 1
    went_on = [batch.tolist() for batch in taken_up]
    assert went_on + values(restored) == rest
    assert restored.epoch == 3


def test_the_state_is_small_and_plain() -> None:
    loader = prepared(shuffled(), 1, 2)
    assert loader.state_dict() == {"epoch": 0, "draws": 0, "batch_size": 2, "seed": 5}
    for _ in islice(loader, 3):
        pass
    # Left early: a save after the loop still means to go on there.
    assert loader.state_dict() == {"epoch": 0, "draws": 6, "batch_size": 2, "seed": 5}
    values(loader)
    assert loader.state_dict() == {"epoch": 2, "draws": 0, "batch_size": 2, "seed": 5}


def test_numbers_while_an_epoch_is_taken_up() -> None:
    loader = prepared(shuffled(), 1, 2)
    loader.load_state_dict({"epoch": 4, "draws": 8, "batch_size": 2, "seed": 5})
    assert len(loader) == 6
    assert [loader.batches_yielded for _ in loader] == [5, 6]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_a_state_holds_for_another_number_of_ranks_and_another_batch_size(
    ranks: int, size: int
) -> None:
    loader = prepared(shuffled(24), 0, 2)
    state, _ = stood_after(loader, 2)  # 2 ranks, 2 batches of 2: 8 samples
    order = [x for batch in values(prepared(shuffled(24))) for x in batch]
    loaders = every_rank(shuffled(24, batch_size=size), ranks, data_seed=0)
    for one in loaders:
        one.load_state_dict(state)
    steps = zip(*(values(one) for one in loaders), strict=True)
    assert [x for step in steps for batch in step for x in batch][:16] == order[8:]


def test_the_trainings_random_numbers_go_on_as_if_not_interrupted() -> None:
    def train(loader: PreparedLoader, start: int, stop: int) -> list[Any]:
        seen: list[Any] = []
        for at, (index, augmented) in enumerate(loader, start):
            seen += [index.tolist(), augmented.tolist(), torch.rand(()).item(), random.random()]
            if at + 1 == stop:
                break
        return seen

    def make() -> PreparedLoader:
        return prepared(DataLoader(Augmented(12), batch_size=2, shuffle=True))

    torch.manual_seed(3)
    random.seed(3)
    straight = train(make(), 0, 6)

    torch.manual_seed(3)
    random.seed(3)
    first = make()
    begun = train(first, 0, 2)
    state, torch_state, python_state = first.state_dict(), torch.get_rng_state(), random.getstate()
    torch.manual_seed(77)  # another process
    second = make()
    second.load_state_dict(state)
    torch.set_rng_state(torch_state)
    random.setstate(python_state)
    assert begun + train(second, 2, 6) == straight


@pytest.mark.parametrize("dataset", [Numbers(12), Stream(12)])
def test_an_epoch_that_is_taken_up_draws_no_seed_for_its_workers_again(dataset: Any) -> None:
    loader = prepared(DataLoader(dataset, batch_size=2))
    loader.load_state_dict({"epoch": 0, "draws": 4, "batch_size": 2, "seed": None})
    before = torch.get_rng_state()
    values(loader)
    assert torch.equal(torch.get_rng_state(), before)
    values(loader)  # the next one does
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_state_loaded_within_a_loop_counts_from_the_next_one() -> None:
    loader = prepared(shuffled(8))
    order = values(prepared(shuffled(8)))
    state: dict[str, Any] = {}
    seen = []
    for at, batch in enumerate(loader):
        if at == 0:
            state = loader.state_dict()
        if at == 2:
            loader.load_state_dict(state)
            assert not loader.end_of_loader
        seen.append(batch.tolist())
    assert seen == order
    assert values(loader) == order[1:]


@pytest.mark.parametrize("state", [{}, {"epoch": "x"}, {"epoch": 0, "draws": None}, [1]])
def test_what_is_no_state_is_refused(state: Any) -> None:
    loader = prepared(shuffled())
    with pytest.raises(DiagError, match="epoch, draws, batch_size and seed"):
        loader.load_state_dict(state)
    assert loader.state_dict()["draws"] == 0


def test_progress() -> None:
    progress = Progress()
    assert progress.begin(0) == (0, 0)
    progress.draws = 3
    progress.set_epoch(4)  # within a pass: for the next one
    assert (progress.epoch, progress.draws) == (0, 3)
    progress.end()
    assert progress.begin(2) == (4, 2)
    progress.complete()
    progress.end()
    assert progress.begin(0) == (5, 0)
    progress.end()
    assert progress.begin(0) == (6, 0)  # left early: the next pass is the next epoch
    progress.end()
    progress.set_epoch(6)  # again
    assert progress.begin(0) == (6, 0)
    restored = Progress(2, 7)
    restored.set_epoch(2)  # what scripts do at the top of every epoch
    assert restored.begin(5) == (2, 7)
    other = Progress(2, 7)
    other.set_epoch(3)
    assert other.begin(0) == (3, 0)


# -- skipping ------------------------------------------------------------------------------


def test_a_view_begins_later_and_stands_where_its_loader_stands() -> None:
    loader = prepared(shuffled(), 1, 2)
    orders = [values(prepared(shuffled(), 1, 2)) for _ in range(1)]
    view = skip_first_batches(loader, 4)
    assert isinstance(view, PreparedLoader)
    assert (len(view), len(loader)) == (2, 6)
    seen = []
    for batch in view:
        assert view.end_of_loader is loader.end_of_loader
        seen.append((batch.tolist(), view.batches_yielded, loader.batches_yielded))
    assert seen == [(orders[0][4], 1, 5), (orders[0][5], 2, 6)]
    # The epoch is over for the loader too.
    assert loader.epoch == 1
    assert len(values(loader)) == 6
    assert len(skip_first_batches(skip_first_batches(loader, 4), 1)) == 1
    assert values(skip_first_batches(loader, 60)) == []


def test_skipping_reads_nothing_of_a_map_style_dataset() -> None:
    for rank in range(2):
        dataset = Numbers(12)
        loader: Any = DataLoader(dataset, batch_size=2)
        assert values(skip_first_batches(prepared(loader, rank, 2), 2)) == [
            [8 + 2 * rank, 9 + 2 * rank]
        ]
        assert dataset.read == [8 + 2 * rank, 9 + 2 * rank]
    dataset = Numbers(12)
    assert values(skip_first_batches(DataLoader(dataset, batch_size=2), 5)) == [[10, 11]]
    assert dataset.read == [10, 11]


def test_what_a_state_left_out_is_not_skipped_again() -> None:
    loader = prepared(DataLoader(Numbers(12), batch_size=2))
    loader.load_state_dict({"epoch": 0, "draws": 4, "batch_size": 2, "seed": None})
    assert values(skip_first_batches(loader, 4)) == [[8, 9], [10, 11]]


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")  # each worker reads it all
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_not_prepared(workers: int) -> None:
    for dataset in (Numbers(9), SizedStream(9)):
        loader: Any = DataLoader(dataset, batch_size=2, num_workers=workers)
        whole = values(loader)
        view = skip_first_batches(loader, 3)
        assert isinstance(view, DataLoader)
        assert values(view) == values(view) == whole[3:]
        assert values(loader) == whole
        assert len(view) == len(loader) - 3
        assert values(skip_first_batches(view, 1)) == whole[4:]
        assert view.batch_size == 2
    pages = DataLoader(Tens(4), batch_size=None, num_workers=workers)
    assert values(skip_first_batches(pages, 3)) == [[3]]


@pytest.mark.parametrize("dataset", [Numbers(12), Stream(12)])
def test_a_skipping_loader_can_be_prepared(dataset: Any) -> None:
    """Skipped are batches of the loader it was, that is of the single process's stream."""
    loader = skip_first_batches(skip_first_batches(DataLoader(dataset, batch_size=2), 1), 1)
    assert [values(one) for one in every_rank(loader, 2)] == [[[4, 5], [8, 9]], [[6, 7], [10, 11]]]
    one = prepared(loader, 0, 2)
    assert [one.batches_yielded for _ in one] == [1, 2]


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(DiagError, match="skip -1"):
        skip_first_batches(shuffled(), -1)
