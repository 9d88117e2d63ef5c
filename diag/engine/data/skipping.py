"""Loaders that begin later: to take an epoch up again where it was left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler

from diag.engine.data.loader import PreparedLoader
from diag.engine.data.reading import check_is_loader, copied
from diag.errors import DiagError


def skip_first_batches(loader: DataLoader[Any], num_batches: int = 0) -> DataLoader[Any]:
    """A loader whose passes begin `num_batches` later; `loader` itself stays as it was.

    Of a map-style dataset the skipped samples are not read. A prepared loader and this view of it
    stand at one place: the epoch after the view's is the loader's next. What a restored state
    leaves out already is not left out twice.

    Args:
        loader: prepared or not.
        num_batches: of the batches `loader` gives.

    Raises:
        DiagError: a negative number; no loader.
    """
    check_is_loader(loader)
    if num_batches < 0:
        raise DiagError("negative-skip", f"skip_first_batches cannot skip {num_batches} batches.")
    if isinstance(loader, PreparedLoader):
        return loader.skipping(num_batches)
    if isinstance(loader.dataset, IterableDataset):
        return LaterLoader(loader, num_batches)
    place = "sampler" if loader.batch_sampler is None else "batch_sampler"
    later = LaterSampler(getattr(loader, place), num_batches)
    return copied(loader, **{place: later}, diag_skips=(loader, num_batches))


def unskipped(loader: DataLoader[Any]) -> tuple[DataLoader[Any], int]:
    """The loader that `skip_first_batches` was given, and how many batches it skips."""
    total = 0
    while (skips := vars(loader).get("diag_skips")) is not None:
        loader, skipped = skips
        total += skipped
    return loader, total


class LaterSampler(Sampler[Any]):
    """A sampler without its first draws; in all else the sampler itself."""

    def __init__(self, sampler: Iterable[Any], num_skipped: int) -> None:
        self._whole: Any = sampler
        self._num_skipped = num_skipped

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._whole), self._num_skipped, None)

    def __len__(self) -> int:
        whole: int = len(self._whole)
        return max(0, whole - self._num_skipped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied
            raise AttributeError(name)
        return getattr(self._whole, name)


class LaterLoader(DataLoader[Any]):
    """A loader of an iterable dataset that reads its first batches for nothing."""

    def __init__(self, loader: DataLoader[Any], num_skipped: int) -> None:
        vars(self).update(vars(loader), diag_skips=(loader, num_skipped))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        loader, num_skipped = vars(self)["diag_skips"]
        return islice(iter(loader), num_skipped, None)

    def __len__(self) -> int:
        loader, num_skipped = vars(self)["diag_skips"]
        return max(0, len(loader) - int(num_skipped))
