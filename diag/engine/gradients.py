"""Gradients of replicated, sharded and plain parameters: their norm, clipping, scaling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm

from diag.engine.placement.shards import is_sharded
from diag.engine.torch_private import multiply_

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The mesh a gradient is sharded over and the mesh's dimensions that cut it; None: this rank has
# all of it.
Layout: TypeAlias = "tuple[DeviceMesh, tuple[int, ...]] | None"


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What the parameters have in `.grad`; those without are left out."""
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def clip_norm_(parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
    """Scale the gradients so that their norm over all shards is at most `max_norm`.

    Collective where parameters are sharded. The factor is torch's own,
    min(1, max_norm / (norm + 1e-6)).

    Returns:
        The norm before, a plain tensor, the same on all ranks.
    """
    found = gradients(parameters)
    norm = total_norm(found, norm_type)
    multiply_(_local(found), torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


@torch.no_grad()
def clip_value_(parameters: Sequence[Tensor], limit: float) -> None:
    """Bring every element of the gradients into [-limit, limit]."""
    for gradient in _local(gradients(parameters)):
        gradient.clamp_(-limit, limit)


@torch.no_grad()
def scale_(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply the gradients by a number."""
    multiply_(_local(gradients(parameters)), factor)


@torch.no_grad()
def local_norm(parameters: Sequence[Tensor], norm_type: float) -> Tensor:
    """The norm of what this rank has in its gradients so far; nothing is sent."""
    return total_norm(_local(gradients(parameters)), norm_type)


def total_norm(found: Sequence[Tensor], norm_type: float) -> Tensor:
    """The norm of the gradients as one vector, over all shards; 0 if there are none.

    Collective where they are sharded: one all-reduce for all that are sharded alike. (torch's
    own fails for the maximum norm where a rank holds an empty shard.)
    """
    groups: dict[Layout, list[Tensor]] = {}
    for gradient in found:
        groups.setdefault(_layout(gradient), []).append(gradient)
    norms = [_over_shards(_local(group), layout, norm_type) for layout, group in groups.items()]
    if not norms:
        return torch.tensor(0.0)
    combined: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return norms[0] if len(norms) == 1 else combined


def _layout(gradient: Tensor) -> Layout:
    if not is_sharded(gradient):
        return None
    cut = [dim for dim, how in enumerate(gradient.placements) if not how.is_replicate()]
    return (gradient.device_mesh, tuple(cut)) if cut else None


def _over_shards(shards: Sequence[Tensor], layout: Layout, norm_type: float) -> Tensor:
    own = get_total_norm([s for s in shards if s.numel()], norm_type).to(shards[0])
    if layout is None:
        return own
    mesh, dims = layout
    highest = math.isinf(norm_type)
    power: Tensor = own if highest else own**norm_type
    for dim in dims:
        op = dist.ReduceOp.MAX if highest else dist.ReduceOp.SUM
        dist.all_reduce(power, op, mesh.get_group(dim))
    root: Tensor = power if highest else power ** (1 / norm_type)
    return root


def _local(found: Iterable[Tensor]) -> list[Tensor]:
    """The tensors this rank holds: of a sharded gradient its shard, not a copy."""
    return [g.to_local() if is_sharded(g) else g for g in found]
