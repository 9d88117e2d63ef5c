"""Gathering for metrics: every sample of the dataset once, whatever was repeated to fill batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from diag.engine import wire
from diag.engine.agreement import Agreed, agree
from diag.engine.logs import get_logger
from diag.engine.process import Process
from diag.engine.trees import Leaf, flatten, mapped, unflatten

_logger = get_logger(__name__)


class Loader(Protocol):
    """What is asked of the loader whose batch is being evaluated.

    Attributes:
        remainder: samples of the global batch last given that repeat no others, if some do; else
            -1. Mostly the last one's; but each worker of an iterable dataset has its own last one.
        local_samples: samples in this rank's batch, repeated ones included; None if unknown.
    """

    @property
    def remainder(self) -> int: ...
    @property
    def local_samples(self) -> int | None: ...


@dataclass(frozen=True)
class _Joined:
    """One leaf of all ranks, the rows of each, and whether each gave a single value without rows."""

    path: str
    value: Tensor | list[Any]
    rows: list[int]
    single: bool = False


def gather_for_metrics(
    process: Process, data: Any, loader: Loader | None, use_gather_object: bool = False
) -> Any:
    """Every rank's results for the batch just evaluated, without the samples repeated to fill it.

    Per-sample values, whose first dimension is the batch, are joined in the dataset's order and
    cut to the real samples; ranks with batches of different sizes are joined as they are. What
    a rank gives for its batch as a whole (a 0-dim tensor, a confusion matrix) stays whole, and
    is left out where the batch is nothing but repetition: what is kept are the batches of a
    single process. A list of other things than tensors holds one object per sample; any other
    object is one per rank.

    Args:
        data: tensors, or nested dicts, tuples, lists of them, or lists of Python objects.
        loader: the innermost loader being iterated; None: nothing is cut.
        use_gather_object: take every list as one object per sample, tensors too: they may differ
            in every dimension. Slow: they travel pickled, through the CPU.

    Raises:
        DiagError: tensors that differ between the ranks in more than their first dimension.
    """
    opaque = _is_object_list(use_gather_object)
    leaves = [_as_leaf(leaf, use_gather_object) for leaf in flatten(data, opaque)]
    if not process.distributed:
        return unflatten(data, iter([_alone(leaf.value) for leaf in leaves]), opaque)
    agreed = _agree(process, leaves, loader)
    joined = list(_join(process, leaves, agreed))
    return unflatten(data, iter(_cut_all(joined, agreed)), opaque)


def _is_object_list(use_gather_object: bool) -> Callable[[Any], bool]:
    def opaque(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        return use_gather_object or not any(isinstance(x.value, Tensor) for x in flatten(value))

    return opaque


def _as_leaf(leaf: Leaf, use_gather_object: bool) -> Leaf:
    if use_gather_object and isinstance(leaf.value, Tensor) and leaf.value.ndim:
        return Leaf(leaf.path, list(leaf.value))  # a tensor of samples is a list of them
    return leaf


def _alone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return wire.as_rows(value)
    return list(value) if isinstance(value, list) else [value]


def _agree(process: Process, leaves: Sequence[Leaf], loader: Loader | None) -> Agreed:
    remainder, samples = -1, None
    if loader is not None:
        remainder = loader.remainder
        samples = loader.local_samples
    return agree(
        process,
        "gather_for_metrics",
        leaves,
        free=0,
        notes=[remainder, -1 if samples is None else samples],
        hint="Sequences padded per batch: engine.pad_across_processes(data, dim=1) first.",
    )


def _join(process: Process, leaves: Sequence[Leaf], agreed: Agreed) -> Iterator[_Joined]:
    objects = iter(_join_objects(process, leaves))
    for at, leaf in enumerate(leaves):
        if not isinstance(leaf.value, Tensor):
            yield next(objects)
        elif leaf.value.ndim == 0:
            ones = [1] * process.world_size
            yield _Joined(leaf.path, wire.gather(process, leaf.value), ones, single=True)
        else:
            rows = [sizes[at] for sizes in agreed.sizes]
            yield _Joined(leaf.path, wire.gather_ragged(process, leaf.value, rows), rows)


def _join_objects(process: Process, leaves: Sequence[Leaf]) -> list[_Joined]:
    """The leaves that are no tensors, all in one message."""
    own = [leaf for leaf in leaves if not isinstance(leaf.value, Tensor)]
    if not own:
        return []
    # A pickled CUDA tensor would come out on the sender's device.
    by_rank = wire.gather_object(process, [_moved(leaf.value, "cpu") for leaf in own])
    return [
        _join_lists(leaf.path, [_moved(given[at], process.device) for given in by_rank])
        for at, leaf in enumerate(own)
    ]


def _join_lists(path: str, values: list[Any]) -> _Joined:
    if not all(isinstance(value, list) for value in values):
        return _Joined(path, values, [1] * len(values), single=True)
    return _Joined(path, [one for value in values for one in value], [len(v) for v in values])


def _moved(value: Any, device: torch.device | str) -> Any:
    return mapped(value, lambda x: x.to(device) if isinstance(x, Tensor) else x)


def _cut_all(joined: Sequence[_Joined], agreed: Agreed) -> Iterator[Any]:
    remainders = {remainder for remainder, _ in agreed.notes}
    samples = [samples for _, samples in agreed.notes]
    # Ranks whose loaders end at different batches were not filled up: nothing to cut.
    real = remainders.pop() if len(remainders) == 1 else -1
    for one in joined:
        yield one.value if real <= 0 else _cut(one, samples, real)


def _cut(one: _Joined, samples: Sequence[int], real: int) -> Any:
    """Args: samples: by rank, -1 if unknown; real: how many of all of them are no repetition."""
    unknown = -1 in samples
    if not one.single and (unknown or one.rows == samples):
        return one.value[:real]
    if unknown:
        return one.value
    ends = list(accumulate(samples))
    ranks = 1 + sum(end < real for end in ends)  # those with a real sample are the first ones
    if ends[ranks - 1] > real:
        _tell_uncut(one.path, ranks - 1, samples[ranks - 1], ends[ranks - 1] - real)
    return one.value[: sum(one.rows[:ranks])]


def _tell_uncut(path: str, rank: int, samples: int, repeated: int) -> None:
    place = f" at {path}" if path else ""
    _logger.warning_once(
        f"gather_for_metrics: what each rank gave{place} is not one value per sample, so nothing "
        f"can be cut from it. In the last batch {repeated} of rank {rank}'s {samples} samples are "
        "repeated to fill it up and count in its value. Gather per-sample values to be exact."
    )
