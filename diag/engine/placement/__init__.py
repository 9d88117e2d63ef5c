"""Where a model's parameters live, and how its gradients are averaged: decided and done in place.

The model the user holds stays the model: its names, its methods and, under DDP, its class.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any, Literal

from torch import nn

from diag.engine import torch_private
from diag.engine.agreement import agree
from diag.engine.options import DDPOptions, FSDPOptions, Precision
from diag.engine.placement.checks import (
    check_no_gradients,
    check_none_distributed_inside,
    check_trainable,
)
from diag.engine.placement.choice import Choice, choose_strategy
from diag.engine.placement.ddp import ddp_of, replicate_in_place
from diag.engine.placement.memory import free_bytes
from diag.engine.placement.meta import materialize, sort_meta
from diag.engine.placement.recompute import recompute
from diag.engine.placement.remap import remap_optimizer
from diag.engine.placement.wrap import find_blocks
from diag.engine.process import Process
from diag.engine.trees import Leaf

__all__ = [
    "Choice",
    "choose_strategy",
    "ddp_of",
    "free_bytes",
    "is_placed",
    "place",
    "remap_optimizer",
    "set_gradient_sync",
]

_log = logging.getLogger(__name__)
# What was put in its place here, under any strategy.
_placed: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# What `set_gradient_sync` last asked of FSDP, which walks all modules to be told.
_asked: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def is_placed(model: nn.Module) -> bool:
    """Whether `place` has had this model, or the user has distributed it."""
    return bool(_distributed_by(torch_private.uncompiled(model)))


def place(
    model: nn.Module,
    process: Process,
    strategy: Literal["ddp", "fsdp", "none"],
    ddp: DDPOptions,
    fsdp: FSDPOptions,
    precision: Precision = "no",
) -> None:
    """Put the model on the process's device and, with several ranks, distribute it; in place.

    Every rank begins with rank 0's weights and buffers; what is still on the meta device gets
    memory and first values. A model that was placed before, or that the user has distributed, is
    left as it is. Collective with several ranks.

    Args:
        strategy: "none", or a single process: distribute nothing.
        fsdp: `activation_checkpointing` and `methods` count under every strategy.
        precision: what FSDP gathers and computes in; elsewhere autocast sees to it.

    Raises:
        DiagError: the model cannot be trained so, or is not the same on all ranks.
    """
    model = torch_private.uncompiled(model)
    if is_placed(model):
        _leave(model, process)
        return
    check_trainable(model)
    if fsdp.activation_checkpointing:
        recompute(find_blocks(model, fsdp))
    if strategy == "none" or not process.distributed:
        materialize(model, process, sort_meta(model, process).to_write)
        model.to(process.device)
    else:
        _check_on_all_ranks(model, process)
        if strategy == "ddp":
            replicate_in_place(model, process, ddp, fsdp.methods)
        else:  # imported here, since it takes most of a second
            from diag.engine.placement.fsdp import shard_in_place

            shard_in_place(model, find_blocks(model, fsdp), process, fsdp, precision)
    _placed.add(model)


def set_gradient_sync(model: nn.Module, on: bool) -> None:
    """Whether the backward of the next forward averages gradients over the ranks.

    A model that the user wrapped in FSDP1 averages in every backward, which adds up to the same.
    """
    model = torch_private.uncompiled(model)
    ddp = ddp_of(model)
    if ddp is not None:
        ddp.require_backward_grad_sync = on
    elif model not in _placed or _asked.get(model, True) != on:
        switch: Any = getattr(model, "set_requires_gradient_sync", _nothing_to_switch)
        switch(on)
        _asked[model] = on


def _nothing_to_switch(on: bool) -> None: ...


def _distributed_by(module: nn.Module) -> str:
    return "prepare" if module in _placed else torch_private.wrapper_of(module)


def _leave(model: nn.Module, process: Process) -> None:
    if model not in _placed and process.is_main:
        wrapper = torch_private.wrapper_of(model)
        _log.warning(
            "%s is distributed already, by %s: it is left as it is, and the engine's options for "
            "placement do not reach it.",
            type(model).__name__,
            wrapper,
        )


def _check_on_all_ranks(model: nn.Module, process: Process) -> None:
    check_none_distributed_inside(model, _distributed_by)
    check_no_gradients(model)
    tensors = [
        *(Leaf(n if p.requires_grad else f"{n} (frozen)", p) for n, p in model.named_parameters()),
        *(Leaf(name, buffer) for name, buffer in model.named_buffers()),
    ]
    agree(process, "prepare", tensors, hint="Build the same model on every rank.")
