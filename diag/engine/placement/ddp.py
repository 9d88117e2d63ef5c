"""DistributedDataParallel beside the model, not around it: the model's own forward is led
through it, and the model keeps its class, its names and its methods.

torch's own `replicate` has the same aim, but hands DDP a bare list of parameters. Seen on torch
2.6 and 2.13: buffers are never synchronized (BatchNorm drifts apart), sparse embeddings fail, the
first forward is a collective (one rank that evaluates first hangs), communication hooks registered
after it are dropped, and the model can be neither copied nor pickled. Here DDP is built over the
model itself, at once.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diag.engine import torch_private, wire
from diag.engine.options import DDPOptions
from diag.engine.placement.meta import materialize, memory_for, sort_meta
from diag.engine.process import Process

# By model; weakly, since each DDP holds its model, and the model's forward holds the DDP.
_beside: weakref.WeakKeyDictionary[nn.Module, weakref.ref[DistributedDataParallel]] = (
    weakref.WeakKeyDictionary()
)


def ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP that synchronizes this model: ours, or the user's own wrapper; None without one."""
    if isinstance(model, DistributedDataParallel):
        return model
    ref = _beside.get(torch_private.uncompiled(model))
    return ref() if ref is not None else None


def replicate_in_place(
    model: nn.Module, process: Process, options: DDPOptions, methods: Sequence[str] = ()
) -> None:
    """Give every rank rank 0's weights and buffers, and average gradients in backward from now on.

    Collective.

    Args:
        methods: other methods of the model whose outputs are trained on; they synchronize as
            forward does.
    """
    torch_private.check_ddp_parts()
    meta = sort_meta(model, process)
    materialize(model, process, meta.to_write)
    for tensor in meta.to_receive:
        memory_for(model, tensor, process.device)
    model.to(process.device)
    if not options.broadcast_buffers:  # then DDP leaves them as they are, at the start too
        for buffer in model.buffers():
            wire.broadcast_into(process, buffer, 0)
    on_gpu = process.device.type == "cuda"
    ddp = DistributedDataParallel(
        model, device_ids=[process.device] if on_gpu else None, **_arguments(options)
    )
    # Imported here, since it takes two seconds, which DDP has taken by now.
    from diag.engine.placement.through import Through

    through = Through(ddp)
    for name in dict.fromkeys(["forward", *methods]):
        method = getattr(model, name)
        led = functools.partial(through, method)
        setattr(model, name, functools.update_wrapper(led, method))
    _beside[model] = weakref.ref(ddp)


def _arguments(options: DDPOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "bucket_cap_mb": options.bucket_cap_mb,
        "static_graph": options.static_graph,
        "gradient_as_bucket_view": options.gradient_as_bucket_view,
        "find_unused_parameters": options.find_unused_parameters,
    }
    if not options.broadcast_buffers:  # renamed in 2.13, where the old name warns
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        renamed = "forward_sync_buffers" in known
        arguments["forward_sync_buffers" if renamed else "broadcast_buffers"] = False
    return arguments
