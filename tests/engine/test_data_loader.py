"""Prepared loaders: what each rank gets, what is known about it, and how a pass begins and ends."""

from __future__ import annotations

import itertools
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    get_worker_info,
)
from torch.utils.data._utils.pin_memory import pin_memory

from diag.engine.data import PreparedLoader, prepare_loader, skip_first_batches
from diag.engine.data.moving import to_device
from diag.engine.data.sharding import Share, Step
from diag.engine.data.streams import StreamSource
from diag.engine.options import DataOptions
from diag.errors import DiagError
from helpers.loaders import (
    Augmented,
    Numbers,
    Observer,
    SizedStream,
    Stream,
    every_rank,
    prepared,
    process,
    values,
)


class Seen(NamedTuple):
    """What a loader said while a batch was out."""

    batch: Any
    local: int | None
    total: int | None
    remainder: int
    end: bool
    end_somewhere: bool
    yielded: int


def watched(loader: PreparedLoader) -> list[Seen]:
    return [
        Seen(
            batch.tolist(),
            loader.local_samples,
            loader.global_samples,
            loader.remainder,
            loader.end_of_loader,
            loader.end_on_some_rank,
            loader.batches_yielded,
        )
        for batch in loader
    ]


# -- what each rank gets -----------------------------------------------------------------


def test_batches_sizes_and_the_end_are_known_on_every_rank() -> None:
    first, second = every_rank(DataLoader(Numbers(7), batch_size=2), 2)
    assert (len(first), len(second)) == (2, 2)
    assert watched(first) == [
        ([0, 1], 2, 4, -1, False, False, 1),
        ([4, 5], 2, 4, 3, True, True, 2),
    ]
    assert watched(second) == [
        ([2, 3], 2, 4, -1, False, False, 1),
        ([6, 0], 2, 4, 3, True, True, 2),
    ]


def test_uneven_batches_are_known_on_every_rank_too() -> None:
    first, second = every_rank(DataLoader(Numbers(5), batch_size=2), 2, even_batches=False)
    assert watched(first) == [
        ([0, 1], 2, 4, -1, False, True, 1),
        ([4], 1, 1, -1, True, True, 2),
    ]
    assert watched(second) == [([2, 3], 2, 4, -1, True, True, 1)]
    assert (len(first), len(second)) == (2, 1)
    assert first.common_length == second.common_length == 1
    assert [first.on_every_rank for _ in first] == [True, False]


def test_a_split_batch_is_the_whole_jobs() -> None:
    loaders = every_rank(DataLoader(Numbers(10), batch_size=4), 2, split_batches=True)
    assert [values(loader) for loader in loaders] == [
        [[0, 1], [4, 5], [8, 9]],
        [[2, 3], [6, 7], [0, 1]],
    ]
    assert [loader.total_batch_size for loader in loaders] == [4, 4]


def test_a_dataset_smaller_than_the_ranks_is_repeated() -> None:
    loaders = every_rank(DataLoader(Numbers(2), batch_size=1), 3)
    assert [watched(loader) for loader in loaders] == [
        [([0], 1, 3, 2, True, True, 1)],
        [([1], 1, 3, 2, True, True, 1)],
        [([0], 1, 3, 2, True, True, 1)],
    ]


def test_one_process_is_left_as_it_is() -> None:
    loader = prepared(DataLoader(Numbers(5), batch_size=2))
    assert watched(loader)[-1] == ([4], 1, 1, -1, True, True, 3)
    stream = prepared(DataLoader(Stream(5), batch_size=2))
    assert watched(stream)[-1] == ([4], 1, 1, -1, True, True, 3)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("even", [False, True])
def test_a_stream_is_divided_as_a_map_style_dataset(workers: int, even: bool) -> None:
    for split, drop in itertools.product((False, True), repeat=2):
        options: dict[str, Any] = {"split_batches": split, "even_batches": even}
        for rank in range(2):
            of_stream = prepared(
                DataLoader(Stream(11), batch_size=2, drop_last=drop, num_workers=workers),
                rank,
                2,
                **options,
            )
            of_map = prepared(
                DataLoader(Numbers(11), batch_size=2, drop_last=drop), rank, 2, **options
            )
            assert watched(of_stream) == watched(of_map)


@pytest.mark.parametrize("even", [True, False])  # which cannot be, with several workers
def test_several_workers_divide_a_stream_each_by_itself(
    even: bool, caplog: pytest.LogCaptureFixture
) -> None:
    striped = DataLoader(Striped(10), batch_size=2, num_workers=2)
    loaders = every_rank(striped, 2, even_batches=even)
    assert all(loader.even_batches for loader in loaders)
    assert ("2 workers has a last step of its own" in caplog.text) is not even
    # Worker 0 reads 0, 2, 4, 6, 8: rounds of 0 2 4 6 and 8 (filled up); worker 1 the odd ones.
    assert [watched(loader) for loader in loaders] == [
        [
            ([0, 2], 2, 4, -1, False, False, 1),
            ([1, 3], 2, 4, -1, False, False, 2),
            ([8, 0], 2, 4, 1, False, False, 3),
            ([9, 1], 2, 4, 1, True, True, 4),
        ],
        [
            ([4, 6], 2, 4, -1, False, False, 1),
            ([5, 7], 2, 4, -1, False, False, 2),
            ([2, 4], 2, 4, 1, False, False, 3),
            ([3, 5], 2, 4, 1, True, True, 4),
        ],
    ]


class Striped(Stream):
    """Each worker its share, as the documentation of torch's IterableDataset has it."""

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        assert info is not None
        return itertools.islice(super().__iter__(), info.id, None, info.num_workers)


def test_an_endless_stream_trains_on() -> None:
    loader = prepared(DataLoader(Stream(None), batch_size=2), 1, 2)
    taken = [batch.tolist() for batch in itertools.islice(loader, 3)]
    assert taken == [[2, 3], [6, 7], [10, 11]]
    with pytest.raises(TypeError):
        len(loader)


def test_the_length_of_a_sized_stream() -> None:
    loaders = every_rank(DataLoader(SizedStream(9), batch_size=2), 2, even_batches=False)
    assert (
        [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders] == [3, 2]
    )
    whole = every_rank(DataLoader(SizedStream(9), batch_size=None), 2, even_batches=False)
    assert [len(loader) for loader in whole] == [len(list(loader)) for loader in whole] == [5, 4]
    with pytest.raises(TypeError):  # a dataset may be wrong about itself
        _ = whole[0].common_length


# -- loaders of every make ---------------------------------------------------------------


class Pages(Dataset[torch.Tensor]):
    """A dataset whose items are batches already."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3,), index)


def test_items_that_are_batches_already_go_round_the_ranks() -> None:
    loaders = every_rank(DataLoader(Pages(), batch_size=None), 2)
    assert [watched(loader) for loader in loaders] == [
        [([i] * 3, None, None, -1, i == 4, i == 4, at) for at, i in enumerate((0, 2, 4), 1)],
        [([i] * 3, None, None, -1, i == 0, i == 0, at) for at, i in enumerate((1, 3, 0), 1)],
    ]
    stream = every_rank(DataLoader(Stream(5), batch_size=None), 2)
    assert [list(loader) for loader in stream] == [[0, 2, 4], [1, 3, 0]]
    with pytest.raises(DiagError, match="no known size"):
        prepared(DataLoader(Pages(), batch_size=None), 0, 2, split_batches=True)


class ReadsLists(Numbers):
    def __getitem__(self, index: Any) -> Any:
        return torch.tensor(index)


def test_a_batch_sampler_given_as_the_sampler() -> None:
    sampler = BatchSampler(range(7), 2, False)
    loaders = every_rank(DataLoader(ReadsLists(7), batch_size=None, sampler=sampler), 2)
    assert [values(loader) for loader in loaders] == [[[0, 1], [4, 5]], [[2, 3], [6, 0]]]
    assert loaders[0].batch_size is None
    assert watched(loaders[1])[-1] == ([6, 0], 2, 4, 3, True, True, 2)


class Buckets:
    """A batch sampler of its own kind: batches of many sizes, no batch_size, no length."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0], [1, 2, 3], [4, 5], [6])
        yield [7, 8]


def test_a_batch_sampler_of_the_users_own() -> None:
    loaders = every_rank(DataLoader(Numbers(9), batch_sampler=Buckets()), 2)  # type: ignore[arg-type]
    assert [watched(loader)[1:] for loader in loaders] == [
        [([4, 5], 2, 3, -1, False, False, 2), ([7, 8], 2, 3, 2, True, True, 3)],
        [([6], 1, 3, -1, False, False, 2), ([0], 1, 3, 2, True, True, 3)],
    ]
    with pytest.raises(TypeError):
        len(loaders[0])


class Collated(list[Any]):
    pass


@pytest.mark.parametrize("dataset", [Numbers(6), Stream(6)])
def test_the_users_collate_fn_makes_the_batches(dataset: Any) -> None:
    loader = prepared(DataLoader(dataset, batch_size=2, collate_fn=Collated), 1, 2)
    assert list(loader) == [Collated([2, 3]), Collated([0, 1])]
    assert all(isinstance(batch, Collated) for batch in loader)
    assert loader.collate_fn is Collated


class Doubling(DataLoader[Any]):
    """A user's subclass with an attribute and an iteration of its own."""

    factor = 2

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield batch * self.factor


class Cached(DataLoader[Any]):
    """A user's subclass that does not ask its sampler."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return iter([torch.zeros(2)])


def test_a_users_subclass_keeps_its_ways() -> None:
    user = Doubling(Numbers(8), batch_size=2)
    user.factor = 10
    assert values(prepared(user, 1, 2)) == [[20, 30], [60, 70]]
    assert values(user) == [[0, 10], [20, 30], [40, 50], [60, 70]]
    with pytest.raises(DiagError, match="its sampler did not draw"):
        list(prepared(Cached(Numbers(8), batch_size=2), 0, 2))


def test_a_prepared_loader_is_a_data_loader_with_the_users_attributes() -> None:
    user = DataLoader(Numbers(8), batch_size=3, num_workers=0, pin_memory=False)
    loader = prepared(user)
    assert isinstance(loader, DataLoader)
    assert loader.dataset is user.dataset
    assert (loader.batch_size, loader.num_workers, loader.timeout) == (3, 0, 0)
    assert loader.multiprocessing_context is None
    assert loader.total_dataset_length == 8
    assert not hasattr(loader, "no_such_attribute")
    again = prepare_loader(loader, process(), DataOptions(), Observer())
    assert again is loader


@pytest.mark.parametrize("persistent", [False, True])
def test_workers(persistent: bool) -> None:
    options: dict[str, Any] = {"num_workers": 2, "persistent_workers": persistent}
    for even in (True, False):
        loader = prepared(DataLoader(Numbers(13), batch_size=2, **options), 1, 2, even_batches=even)
        alone = prepared(DataLoader(Numbers(13), batch_size=2), 1, 2, even_batches=even)
        expected = watched(alone)
        assert watched(loader) == expected
        for _ in loader:  # left early, with batches under way
            break
        assert watched(loader) == expected


def test_living_workers_of_the_users_loader_are_not_taken_over() -> None:
    user = DataLoader(Numbers(8), batch_size=2, num_workers=1, persistent_workers=True)
    assert len(values(user)) == 4
    assert values(prepared(user, 1, 2)) == [[2, 3], [6, 7]]


def test_batches_that_come_out_of_order_have_no_known_size() -> None:
    loader = DataLoader(Numbers(5), batch_size=2, num_workers=2, in_order=False)
    seen = watched(prepared(loader))
    assert sorted(itertools.chain.from_iterable(one.batch for one in seen)) == [0, 1, 2, 3, 4]
    assert [(one.local, one.end) for one in seen] == [(None, False), (None, False), (None, True)]


class Pinned:
    """A sample that can tell whether it was pinned."""

    def __init__(self) -> None:
        self.pinned = False

    def pin_memory(self) -> Pinned:
        pinned = Pinned()
        pinned.pinned = True
        return pinned


def test_torch_pins_the_batches_of_a_stream() -> None:
    step = Step([Pinned()], rank=1, local=1, last=True)
    (pinned,) = pin_memory((step,))
    assert (pinned.rank, pinned.local, pinned.last) == (1, 1, True)
    assert pinned.part[0].pinned


def test_a_divided_stream_can_be_sent_to_a_worker() -> None:
    """As a start method that spawns does."""
    source = StreamSource(DataLoader(Started(), batch_size=2), Share(2).of(2, False, True), [1], 5)
    shard, collate = pickle.loads(pickle.dumps((source.reader.dataset, source.reader.collate_fn)))
    shard.start = 20
    assert shard.start == vars(shard)["_dataset"].start == 20
    assert [collate(taken)[0].part.tolist() for taken in shard] == [[22, 23]]
    assert not hasattr(shard, "no_such_attribute")


def start_at_ten(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.start = 10  # type: ignore[attr-defined]


class Started(IterableDataset[int]):
    start = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + 4))


def test_a_worker_init_fn_reaches_the_users_dataset() -> None:
    loader = DataLoader(Started(), batch_size=2, num_workers=1, worker_init_fn=start_at_ten)
    assert values(prepared(loader, 1, 2)) == [[12, 13]]


# -- nothing is read ahead; the training's random numbers stay its own --------------------


def test_map_style_data_is_read_when_the_training_asks_for_it() -> None:
    dataset = Numbers(9)
    read = [list(dataset.read) for _ in prepared(DataLoader(dataset, batch_size=2), 0, 2)]
    assert read == [[0, 1], [0, 1, 4, 5], [0, 1, 4, 5, 8, 0]]


def draws_between(loader: Any) -> list[Any]:
    """Batches of an augmenting dataset, and what a model's dropout would draw between them."""
    torch.manual_seed(3)
    seen: list[Any] = []
    for _ in range(2):
        for index, augmented in loader:
            seen += [index.tolist(), augmented.tolist(), torch.rand(()).item()]
    return seen


@pytest.mark.parametrize("generator", [None, 11])
def test_a_single_process_draws_the_numbers_it_draws_without_an_engine(
    generator: int | None,
) -> None:
    def loader() -> DataLoader[Any]:
        own = None if generator is None else torch.Generator().manual_seed(generator)
        return DataLoader(Augmented(7), batch_size=2, generator=own)

    assert draws_between(prepared(loader())) == draws_between(loader())


def test_the_models_random_numbers_do_not_depend_on_what_a_stream_draws() -> None:
    def drawn(loader: Any) -> list[float]:
        torch.manual_seed(3)
        return [torch.rand(()).item() for _ in loader]

    assert drawn(prepared(DataLoader(Noisy(), batch_size=2))) == drawn(
        prepared(DataLoader(Stream(6), batch_size=2))
    )


class Noisy(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for at in range(6):
            yield at, torch.rand(()).item()


# -- how a pass ends ---------------------------------------------------------------------


class Broken(Numbers):
    """Sample 4 cannot be read while `broken`."""

    broken = True

    def __getitem__(self, index: int) -> int:
        if index == 4 and self.broken:
            raise OSError("sample 4")
        return index


class BrokenStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(4)
        raise OSError("sample 4")


@pytest.mark.parametrize(
    ("dataset", "workers"),
    [(Broken(8), 0), (Broken(8), 2), (BrokenStream(), 0), (BrokenStream(), 1)],
)
def test_an_error_comes_at_the_batch_that_has_it(dataset: Any, workers: int) -> None:
    observer = Observer()
    loader = prepared(DataLoader(dataset, batch_size=2, num_workers=workers), observer=observer)
    seen: list[Any] = []
    with pytest.raises(OSError, match="sample 4") as raised:
        seen.extend((batch.tolist(), loader.end_of_loader) for batch in loader)
    traceback.clear_frames(raised.tb)  # they hold torch's iterator, and that its workers
    assert seen == [([0, 1], False), ([2, 3], False)]
    assert observer.heard == ["began", "ended"]
    if not workers and isinstance(dataset, Broken):
        dataset.broken = False
        assert len(values(loader)) == 4
        dataset.broken = True


def test_a_loop_left_early_leaves_the_loader_as_good_as_new() -> None:
    observer = Observer()
    loader = prepared(DataLoader(Numbers(8), batch_size=2, shuffle=True), observer=observer)
    for _ in loader:
        break
    assert observer.heard == ["began", "ended"]
    assert not loader.end_of_loader
    assert loader.local_samples is None
    orders = [values(loader) for _ in range(2)]
    # Each iteration is another epoch, as with torch's own.
    assert loader.epoch == 3
    assert orders == [in_epoch(1), in_epoch(2)]


def in_epoch(epoch: int, seed: int = 5) -> list[list[int]]:
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed + epoch))
    return order.view(4, 2).tolist()


def test_an_iterator_that_is_closed_or_dropped_ends_its_pass() -> None:
    observer = Observer()
    loader = prepared(DataLoader(Numbers(8), batch_size=2), observer=observer)
    iterator = iter(loader)
    assert observer.heard == []
    assert next(iterator).tolist() == [0, 1]
    assert observer.open == [loader]
    iterator.close()  # type: ignore[attr-defined]
    assert observer.heard == ["began", "ended"]
    assert next(iter(loader)).tolist() == [0, 1]
    assert observer.heard == ["began", "ended"] * 2


def test_loops_nest() -> None:
    observer = Observer()
    train = prepared(DataLoader(Numbers(4), batch_size=2), observer=observer)
    validate = prepared(DataLoader(Numbers(3), batch_size=1), observer=observer)
    for at, _ in enumerate(train):
        for _ in validate:
            assert observer.open == [train, validate]
        assert observer.open == [train]
        assert train.end_of_loader is (at == 1)
        assert train.local_samples == 2
    assert observer.open == []


def test_two_passes_over_one_loader_at_once() -> None:
    loader = prepared(DataLoader(Numbers(4), batch_size=2), 1, 2)
    assert [(a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)] == [
        ([2, 3], [2, 3])
    ]


def test_a_sampler_looked_at_during_a_pass_does_not_disturb_it() -> None:
    loader = prepared(DataLoader(Numbers(8), batch_size=2), 1, 2)
    for at, batch in enumerate(loader):
        assert list(loader.batch_sampler) == [[2, 3], [6, 7]]  # type: ignore[call-overload]
        assert batch.tolist() == [[2, 3], [6, 7]][at]
        assert loader.end_of_loader is (at == 1)


def test_even_batches_can_be_changed_between_passes() -> None:
    living: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
    for dataset, options in ((Numbers(5), {}), (Stream(5), {}), (Stream(5), living)):
        loader = prepared(DataLoader(dataset, batch_size=2, **options), 1, 2)
        assert values(loader) == [[2, 3], [1, 2]]
        loader.even_batches = False
        assert values(loader) == [[2, 3]]
    assert prepared(DataLoader(Numbers(5))).batch_sampler.even_batches  # type: ignore[union-attr]


# -- what is said of a loader that gives nothing -------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_loader_without_batches_is_said_to_have_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader = prepared(DataLoader(Numbers(0), batch_size=4), 0, 2)
        assert values(loader) == []
        assert said(caplog) == ["A loader gives no batch: 0 samples, batches of 4, 2 ranks."]
        caplog.clear()
        assert list(prepared(DataLoader(Numbers(7), batch_size=4, drop_last=True), 0, 2)) == []
        assert said(caplog) == [
            "A loader gives no batch: 7 samples, batches of 4, 2 ranks, drop_last=True."
        ]
        caplog.clear()
        prepared(DataLoader(Numbers(7), batch_size=4), 0, 4, even_batches=False)
        assert said(caplog)[0].startswith("A loader gives no batch on ranks 2 and 3: 7 samples")
        caplog.clear()
        prepared(DataLoader(SizedStream(0), batch_size=None), 0, 2)
        assert said(caplog) == ["A loader gives no batch: 0 samples, 2 ranks."]


def test_an_empty_pass_begins_and_ends() -> None:
    observer = Observer()
    for dataset in (Numbers(0), Stream(0)):
        assert list(prepared(DataLoader(dataset, batch_size=2), 1, 2, observer)) == []
    assert observer.heard == ["began", "ended"] * 2


# -- moving ------------------------------------------------------------------------------


class OwnBatch:
    """Knows how to move, without `non_blocking`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def to(self, device: torch.device) -> OwnBatch:
        return OwnBatch(self.tensor.to(device))


def test_batches_are_moved_wherever_their_tensors_are() -> None:
    meta = torch.device("meta")
    batch = {
        "x": torch.zeros(2),
        "more": [torch.zeros(1), "text", None],
        "own": OwnBatch(torch.zeros(3)),
    }
    moved = to_device(batch, meta, non_blocking=True)
    assert moved["x"].device == moved["more"][0].device == moved["own"].tensor.device == meta
    assert moved["more"][1:] == ["text", None]
    assert batch["x"].device.type == "cpu"  # type: ignore[attr-defined]
    there = (torch.zeros(2), "text")
    assert to_device(there, torch.device("cpu"), non_blocking=False) is there


def test_batches_stay_where_they_are_if_asked() -> None:
    chosen = DataOptions(dispatch_batches=False)
    data = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    place = process()
    left = prepare_loader(data, place, chosen, Observer(), put_on_device=False)
    assert left.device is None
    assert prepare_loader(data, place, chosen, Observer()).device == place.device
    assert [batch.tolist() for (batch,) in left] == [[0, 1], [2, 3]]


def test_a_drawn_seed_is_drawn_once_and_kept() -> None:
    def order() -> list[list[int]]:
        torch.manual_seed(1)
        loader = prepared(DataLoader(Numbers(8), batch_size=2, shuffle=True), data_seed=None)
        torch.manual_seed(2)
        return values(loader)

    assert order() == order()
    own = torch.Generator().manual_seed(42)
    sampler = RandomSampler(Numbers(8), generator=own)
    loader = prepared(DataLoader(Numbers(8), batch_size=2, sampler=sampler), data_seed=None)
    assert values(loader) == in_epoch(0, seed=42)


@pytest.mark.parametrize("action", [prepared, skip_first_batches])
def test_what_is_no_loader_is_refused(action: Any) -> None:
    with pytest.raises(DiagError) as error:
        action([1, 2])
    assert error.value.slug == "not-a-loader"
    assert "a list" in error.value.what
