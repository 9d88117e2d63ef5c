"""Tensors of which each rank holds a part: FSDP2's parameters, and what goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; asked without importing DTensor, which takes half a second."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached, on the CPU. Collective for a sharded one.

    No copy of a plain tensor on the CPU.
    """
    tensor = tensor.detach()
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).cpu()


def fill(tensor: Tensor, whole: Tensor) -> None:
    """Overwrite `tensor` with `whole`, or with this rank's part of it."""
    target = tensor.detach()
    if is_sharded(target):
        target.to_local().copy_(local_part(whole, target))
    else:
        target.copy_(whole)


def local_part(whole: Tensor, like: DTensor) -> Tensor:
    """What this rank holds of `whole` when it is cut as `like` is: on a mesh of one dimension.

    fully_shard cuts as torch.chunk does; a rank past the last chunk has an empty part.
    """
    dim = like.placements[0].dim  # type: ignore[attr-defined]  # always a Shard
    chunks = whole.chunk(like.device_mesh.size(), dim)
    rank = like.device_mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else whole.narrow(dim, 0, 0)


def sharded_as(whole: Tensor, like: DTensor) -> DTensor:
    """`whole`, the same on every rank, cut as `like` is."""
    from torch.distributed.tensor import DTensor

    part = local_part(whole, like).to(like.to_local().device)
    return DTensor.from_local(
        part.clone(memory_format=torch.contiguous_format),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.contiguous().stride(),
    )
