"""Tensors between the ranks: every dtype, every layout, from whichever device they lie on.

All of it needs a process group; a single process never comes here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from diag.engine.process import Process

Reduction = Literal["sum", "mean", "max", "min"]

_OPERATIONS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}
# What NCCL and gloo can add up or compare; the rest travels as one of these.
_NATIVE = (
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.complex64,
    torch.complex128,
)


def as_rows(tensor: Tensor) -> Tensor:
    """`tensor` without its gradient; a 0-dim one as a row of its own."""
    tensor = tensor.detach()
    return tensor if tensor.ndim else tensor[None]


def gather(process: Process, tensor: Tensor) -> Tensor:
    """Every rank's `tensor` one after the other along the first dimension.

    Args:
        tensor: of the same shape and dtype on every rank; a 0-dim tensor counts as one row.

    Returns:
        Shape [N·rows, …], detached, on the device `tensor` lies on.
    """
    tensor = as_rows(tensor)
    sent = _to_bytes(_to_wire(process, tensor))
    received = sent.new_empty(process.world_size * sent.numel())
    _all_gather(received, sent)
    rows = process.world_size * tensor.shape[0]
    return received.view(tensor.dtype).view(rows, *tensor.shape[1:]).to(tensor.device)


def gather_ragged(process: Process, tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """As `gather`, for tensors of `rows[r]` rows on rank r and one shape beyond the first dimension."""
    tensor, most = as_rows(tensor), max(rows)
    if min(rows) == most:
        return gather(process, tensor)
    padded = tensor.new_zeros((most, *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    everyone = gather(process, padded)
    return torch.cat([everyone[r * most : r * most + count] for r, count in enumerate(rows)])


def reduce(process: Process, tensor: Tensor, reduction: Reduction) -> Tensor:
    """One tensor from every rank's, detached, on the device `tensor` lies on.

    Sums and means have the dtypes of torch's own: integers add up to int64, and their mean is
    floating. 16-bit and 8-bit floats are added in float32.
    """
    value = tensor.detach()
    if reduction in ("sum", "mean") and not value.is_floating_point() and not value.is_complex():
        value = value.long()
    result_dtype = value.dtype
    sent = _to_wire(process, value)
    if sent.dtype not in _NATIVE:
        sent = sent.float() if sent.is_floating_point() else sent.long()
    total = sent.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, _OPERATIONS[reduction])
    if reduction == "mean":
        total = total / process.world_size
        result_dtype = result_dtype if value.is_floating_point() else total.dtype
    return total.to(tensor.device, result_dtype)


def broadcast_into(process: Process, tensor: Tensor, source: int) -> None:
    """Overwrite `tensor` with rank `source`'s, of the same shape and dtype."""
    target = tensor.detach()
    sent = _to_bytes(_to_wire(process, target))
    dist.broadcast(sent, source)
    if process.rank != source and sent.data_ptr() != target.data_ptr():
        target.copy_(sent.view(target.dtype).view(target.shape))


def exchange(process: Process, numbers: Sequence[int]) -> list[list[int]]:
    """Every rank's integers, of which each gives equally many."""
    device = process.device if process.backend == "nccl" else "cpu"
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    everyone: list[list[int]] = gather(process, own[None]).tolist()
    return everyone


def gather_object(process: Process, value: Any) -> list[Any]:
    """Every rank's `value`, by rank; anything that can be pickled."""
    values: list[Any] = [None] * process.world_size
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Return when every rank has come here."""
    # Without a device NCCL guesses one, and says so.
    dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def _to_wire(process: Process, tensor: Tensor) -> Tensor:
    # NCCL takes CUDA tensors only; gloo takes both.
    if process.backend == "nccl" and tensor.device.type != process.device.type:
        tensor = tensor.to(process.device)
    return tensor.resolve_conj().resolve_neg().contiguous()


def _to_bytes(tensor: Tensor) -> Tensor:
    # What is only moved need not be understood: gloo has no int16, NCCL no complex numbers.
    return tensor.view(math.prod(tensor.shape)).view(torch.uint8)


def _all_gather(received: Tensor, sent: Tensor) -> None:
    # torch renamed it after 2.12; the old name warns from then on.
    function = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    function(received, sent)
