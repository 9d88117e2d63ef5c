"""Collectives over nested data: dicts, lists, tuples, named tuples and dataclasses of tensors.

Every function returns the nest it was given with new leaves; None stays None. Results carry no
gradient. A single process gets what N = 1 ranks would: the same shapes, nothing sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch.distributed as dist
from torch import Tensor

from diag.engine import wire
from diag.engine.agreement import agree
from diag.engine.metrics import gather_for_metrics
from diag.engine.process import Process
from diag.engine.trees import Leaf, flatten, is_namedtuple, unflatten
from diag.errors import DiagError

__all__ = [
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_for_metrics",
    "gather_object",
    "pad_across_processes",
    "reduce",
]

_PAD = "Bring them to one size first: engine.pad_across_processes(data, dim=…)."


def gather(process: Process, tree: Any, check: bool = False) -> Any:
    """Every rank's tensors, joined along the first dimension in the order of the ranks.

    Args:
        tree: tensors of the same shape on every rank; a 0-dim tensor becomes a row of N values.
        check: compare the ranks' shapes first, at the cost of one more, small collective.

    Raises:
        DiagError: a leaf that is no tensor; with `check`, ranks with different shapes.
    """
    leaves = _tensors(tree, "gather")
    if check and process.distributed:
        agree(process, "gather", leaves, hint=_PAD)
    return _map(tree, leaves, lambda one: _gather_one(process, one))


def reduce(
    process: Process, tree: Any, reduction: str = "sum", scale: float = 1.0, check: bool = False
) -> Any:
    """One nest from every rank's, element by element.

    Args:
        reduction: "sum", "mean", "max", "min"; "none" returns copies.
        scale: the result is multiplied by it.
        check: as in `gather`.

    Raises:
        DiagError: another reduction; a leaf that is no tensor; with `check`, different shapes.
    """
    if reduction not in (*get_args(wire.Reduction), "none"):
        raise DiagError(
            "unknown-reduction",
            f"reduce knows no reduction {reduction!r}.",
            'Take "sum", "mean", "max", "min" or "none".',
        )
    leaves = _tensors(tree, "reduce")
    if check and process.distributed:
        agree(process, "reduce", leaves)
    return _map(tree, leaves, lambda one: _reduce_one(process, one, reduction, scale))


def broadcast(process: Process, tree: Any, from_rank: int = 0, check: bool = False) -> Any:
    """Rank `from_rank`'s values in every rank's tensors, in place; returns the nest.

    Raises:
        DiagError: no such rank; a leaf that is no tensor; with `check`, different shapes.
    """
    _known_rank(process, from_rank, "broadcast")
    leaves = _tensors(tree, "broadcast")
    if not process.distributed:
        return tree
    if check:
        agree(process, "broadcast", leaves)
    for leaf in leaves:
        wire.broadcast_into(process, leaf.value, from_rank)
    return tree


def pad_across_processes(
    process: Process, tree: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
) -> Any:
    """Tensors as long along `dim` as the longest of any rank's, so that they can be gathered.

    A tensor without that dimension stays as it is.

    Args:
        pad_index: the value to fill with.
        pad_first: fill before the data, not after.

    Raises:
        DiagError: the ranks' tensors differ in more than their size along `dim`.
    """
    leaves = _tensors(tree, "pad_across_processes")
    if not process.distributed:
        return tree
    agreed = agree(process, "pad_across_processes", leaves, free=dim)
    longest = iter([max(sizes) for sizes in zip(*agreed.sizes, strict=True)])
    return _map(tree, leaves, lambda one: _pad_one(one, dim, next(longest), pad_index, pad_first))


def gather_object(process: Process, value: Any) -> list[Any]:
    """Every rank's Python values in one list.

    Lists and tuples are joined; anything else is one element per rank.
    """
    values = wire.gather_object(process, value) if process.distributed else [value]
    joined: list[Any] = []
    for one in values:
        joined.extend(one if _is_sequence(one) else [one])
    return joined


def broadcast_object_list(process: Process, values: list[Any], from_rank: int = 0) -> list[Any]:
    """Overwrite `values` with rank `from_rank`'s, of the same length; anything that can be pickled."""
    _known_rank(process, from_rank, "broadcast_object_list")
    if process.distributed:
        dist.broadcast_object_list(values, from_rank)
    return values


def _tensors(tree: Any, operation: str) -> list[Leaf]:
    leaves = flatten(tree)
    for leaf in leaves:
        if not isinstance(leaf.value, Tensor):
            place = f" at {leaf.path}" if leaf.path else ""
            raise DiagError(
                "not-a-tensor",
                f"{operation} takes tensors, and was given {_article(leaf.value)}{place}.",
                "For other values: engine.gather_object, engine.broadcast_object_list. "
                "A number: torch.tensor(number, device=engine.device).",
            )
    return leaves


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _map(tree: Any, leaves: Sequence[Leaf], function: Callable[[Tensor], Tensor]) -> Any:
    return unflatten(tree, iter([function(leaf.value) for leaf in leaves]))


def _gather_one(process: Process, tensor: Tensor) -> Tensor:
    return wire.gather(process, tensor) if process.distributed else wire.as_rows(tensor)


def _reduce_one(process: Process, tensor: Tensor, reduction: str, scale: float) -> Tensor:
    if reduction == "none":
        result = tensor.detach().clone()
    elif process.distributed:
        result = wire.reduce(process, tensor, reduction)  # type: ignore[arg-type]
    else:
        result = _alone(tensor.detach().clone(), reduction)
    return result if scale == 1.0 else result * scale


def _alone(tensor: Tensor, reduction: str) -> Tensor:
    """A reduction over one rank: nothing but its dtype."""
    if reduction in ("max", "min") or tensor.is_floating_point() or tensor.is_complex():
        return tensor
    return tensor.long() if reduction == "sum" else tensor / 1


def _pad_one(tensor: Tensor, dim: int, size: int, pad_index: float, pad_first: bool) -> Tensor:
    if not -tensor.ndim <= dim < tensor.ndim or tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size
    padded = tensor.new_full(shape, pad_index)
    start = size - tensor.shape[dim] if pad_first else 0
    padded.narrow(dim, start, tensor.shape[dim]).copy_(tensor)
    return padded


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not is_namedtuple(value)


def _known_rank(process: Process, rank: int, operation: str) -> None:
    if not 0 <= rank < process.world_size:
        raise DiagError(
            "no-such-rank",
            f"{operation} from rank {rank}: there are ranks 0 to {process.world_size - 1}.",
        )
