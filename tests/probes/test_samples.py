"""Sample counts: the loader's indices are believed, a lying leading dimension is not."""

from __future__ import annotations

from collections import deque

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from diag.probes.samples import LoaderSizes, agreed_lead, batch_samples, batch_tokens


def sizes(*drawn: int, nominal: int | None = None) -> LoaderSizes:
    return LoaderSizes(deque(drawn), nominal)


def test_drawn_indices_win_whatever_the_batch_looks_like() -> None:
    sequence_first = torch.zeros(50, 8, 3)
    assert batch_samples(sequence_first, sizes(8, nominal=8), iterable=False) == 8
    ragged = [torch.zeros(3), torch.zeros(9)]
    assert batch_samples(ragged, sizes(2, nominal=8), iterable=False) == 2
    packed = {"input_ids": torch.zeros(1, 4096), "position_ids": torch.zeros(1, 4096)}
    assert batch_samples(packed, sizes(1, nominal=1), iterable=False) == 1


def test_a_batch_without_a_loaders_size_needs_two_tensors_that_agree() -> None:
    pair = (torch.zeros(6, 2), torch.zeros(6))
    assert batch_samples(pair, sizes(), iterable=False) == 6
    assert batch_samples(torch.zeros(6, 2), sizes(), iterable=False) is None
    assert batch_samples((torch.zeros(6), torch.zeros(5)), sizes(), iterable=False) is None
    assert batch_samples({"a": torch.zeros(4), "b": [torch.zeros(4)]}, sizes(), False) == 4
    assert batch_samples("text", sizes(), iterable=False) is None


def test_an_iterable_datasets_short_last_batch_counts_what_it_holds() -> None:
    known = sizes(nominal=8)
    assert batch_samples(torch.zeros(8, 3), known, iterable=True) == 8
    assert batch_samples(torch.zeros(5, 3), known, iterable=True) == 5


def test_an_iterable_sequence_first_batch_counts_the_batch_size() -> None:
    known = sizes(nominal=8)
    for length in (50, 3):
        assert batch_samples(torch.zeros(length, 8), known, iterable=True) == 8


def test_scalars_have_no_leading_dimension() -> None:
    assert agreed_lead((torch.zeros(4, 2), torch.tensor(1.0)), at_least=1) == 4


def test_tokens_of_a_masked_batch() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert batch_tokens({"input_ids": ids, "attention_mask": mask}) == 3
    assert batch_tokens({"input_ids": ids}) == 6
    assert batch_tokens((ids, mask)) is None


class Counted(IterableDataset[int]):
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(10))


def test_real_loaders_draw_what_they_deliver() -> None:
    """The order of drawing is the order of delivery, also with workers that prefetch."""
    dataset = TensorDataset(torch.arange(10))
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=4, num_workers=workers)
        assert [len(batch) for (batch,) in loader] == [4, 4, 2]
    assert [len(b) for b in DataLoader(Counted(), batch_size=4)] == [4, 4, 2]
