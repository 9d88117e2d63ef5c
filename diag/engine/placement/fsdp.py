"""Sharding by torch's `fully_shard` (FSDP2), in place: block by block, then the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from diag.engine import torch_private, wire
from diag.engine.options import FSDPOptions, Precision
from diag.engine.placement.checks import listing
from diag.engine.placement.meta import materialize, memory_for, sort_meta
from diag.engine.placement.shards import is_sharded
from diag.engine.process import Process
from diag.errors import DiagError

_COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def shard_in_place(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    process: Process,
    options: FSDPOptions,
    precision: Precision,
) -> None:
    """Leave each rank its part of rank 0's parameters, and average gradients in backward.

    Collective. At most one block is whole on the device at any time. Buffers are rank 0's at the
    start; they are not synchronized later (BatchNorm's statistics become each rank's own).

    Args:
        blocks: what to gather one by one, outer before inner.

    Raises:
        DiagError: fully_shard cannot cut a parameter.
    """
    _check_torch(process.device)
    _check_shapes(model)
    meta = sort_meta(model, process)
    mesh = init_device_mesh(process.device.type, (process.world_size,))
    policy = _policy(precision)
    seen: set[Tensor] = set()
    for module in [*reversed(blocks), model]:
        _check_dtypes(module)
        _bring(module, process, meta.to_receive, seen)
        if module is model and options.reshard_after_forward:
            fully_shard(module, mesh=mesh, mp_policy=policy)  # kept gathered: backward begins here
        else:
            keep = options.reshard_after_forward
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=keep)
    materialize(model, process, meta.to_write)
    _bring(model, process, meta.to_receive, seen)  # the buffers that have just been written
    for name in options.methods:
        register_fsdp_forward_method(model, name)


def _bring(module: nn.Module, process: Process, awaited: set[Tensor], seen: set[Tensor]) -> None:
    """Rank 0's plain tensors to every rank's device; what no rank has yet waits."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor in awaited and tensor.is_meta:
            memory_for(tensor, process.device)
        if tensor in seen or is_sharded(tensor) or tensor.is_meta:
            continue
        seen.add(tensor)
        tensor.data = tensor.data.to(process.device).contiguous()
        wire.broadcast_into(process, tensor, 0)


def _check_torch(device: torch.device) -> None:
    if not torch_private.runs_fsdp(device):
        raise DiagError(
            "torch-unsupported",
            f"torch {torch.__version__} cannot run FSDP on the CPU.",
            hint="Use torch 2.7 or newer, or strategy='ddp'.",
        )


def _check_shapes(model: nn.Module) -> None:
    scalars = [name for name, p in model.named_parameters() if p.ndim == 0]
    if scalars:
        raise DiagError(
            "scalar-parameters",
            f"FSDP cannot shard parameters without a dimension: {listing(scalars)}.",
            hint="Give them the shape (1,), or use strategy='ddp'.",
        )


def _check_dtypes(module: nn.Module) -> None:
    examples = {p.dtype: n for n, p in module.named_parameters() if not is_sharded(p)}
    if len(examples) > 1:
        listed = ", ".join(f"{name} is {dtype}" for dtype, name in examples.items())
        raise DiagError(
            "mixed-dtypes",
            f"FSDP gathers the parameters of {type(module).__name__} together, and they are of "
            f"{len(examples)} dtypes: {listed}.",
            hint="Convert them to one dtype, or shard the odd ones by themselves (wrap_classes).",
        )


def _policy(precision: Precision) -> MixedPrecisionPolicy:
    """Compute and gather in 16 bit; keep and add up in what the parameters are, or float32."""
    if precision == "no":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=_COMPUTE_DTYPES[precision], reduce_dtype=torch.float32)
