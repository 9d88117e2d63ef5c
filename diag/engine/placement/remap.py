"""An optimizer built before its model was placed, led to the parameters as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from diag.engine.placement.checks import listing
from diag.engine.placement.ddp import ddp_of
from diag.engine.placement.shards import is_sharded, sharded_as
from diag.errors import DiagError


@dataclass(frozen=True)
class _Move:
    """One parameter's way; `on_device`: its optimizer keeps even the step count on its device."""

    name: str
    old: nn.Parameter
    new: nn.Parameter
    on_device: bool


def remap_optimizer(
    optimizer: Optimizer, before: Mapping[str, nn.Parameter], model: nn.Module
) -> None:
    """Give the optimizer the parameters that took the place of those of `before`.

    Groups keep their order and options; what has been accumulated for a parameter (momentum) is
    rank 0's from here on, as the weights are, and is sharded and moved as the parameter is.
    Parameters of other models stay. Collective with several ranks.

    Args:
        before: the model's parameters by name, from before it was placed.

    Raises:
        DiagError: the ranks' optimizers have accumulated for different parameters, or something
            that cannot be sharded as its parameter is.
    """
    after = dict(model.named_parameters(remove_duplicate=False))
    names = {old: name for name, old in before.items()}
    moves = []
    for group in optimizer.param_groups:
        on_device = bool(group.get("capturable") or group.get("fused"))
        known = [p for p in group["params"] if p in names]
        moves += [_Move(names[p], p, after[names[p]], on_device) for p in known]
        # In place: some optimizers (LBFGS) keep the list itself.
        group["params"][:] = [after[names[p]] if p in names else p for p in group["params"]]
    states = [
        (move, optimizer.state.pop(move.old)) for move in moves if move.old in optimizer.state
    ]
    shared = ddp_of(model) is not None or any(is_sharded(move.new) for move in moves)
    if shared:
        _check_same_state(states)
    for move, state in states:
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = _moved(key, value, move, shared)
        optimizer.state[move.new] = state


def _check_same_state(states: list[tuple[_Move, dict[str, Any]]]) -> None:
    mine = [f"{m.name} ({key})" for m, s in states for key, v in s.items() if isinstance(v, Tensor)]
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            differing = sorted(set(theirs).symmetric_difference(everyone[0]))
            raise DiagError(
                "optimizer-state-differs",
                f"The optimizers of rank 0 and rank {rank} have accumulated for different "
                f"parameters: {listing(differing)}.",
                hint="Load the optimizer's state on every rank, or after prepare (load_state).",
            )


def _moved(key: str, value: Tensor, move: _Move, shared: bool) -> Tensor:
    """Rank 0's `value`, laid out as the parameter is."""
    device = move.new.device
    whole = _from_rank_0(value.to(device)) if shared else value.to(device)
    if value.ndim == 0 and not move.on_device:
        return whole.to(value.device)  # most optimizers count their steps on the CPU
    if value.ndim == 0 or not is_sharded(move.new):
        return whole
    if value.shape != move.new.shape:
        raise DiagError(
            "optimizer-state-unshardable",
            f"{move.name} is sharded now, and what the optimizer keeps of it as {key} is not of "
            f"its shape: {list(value.shape)} instead of {list(move.new.shape)}.",
            hint="Prepare model and optimizer before the first step, or use strategy='ddp'.",
        )
    return sharded_as(whole, move.new)


def _from_rank_0(value: Tensor) -> Tensor:
    sent = value.detach().clone().reshape(-1)
    dist.broadcast(sent.view(torch.uint8), 0)  # as bytes: gloo does not know every dtype
    return sent.view(value.shape)
