"""Sharding by torch's `fully_shard` (FSDP2), in place: block by block, then the rest.

In mixed precision it computes bit for bit what autocast computes from whole float32 parameters:
blocks, whose weights autocast would cast anyway, are gathered in 16 bit; their norms and what
lies outside of blocks as they are. Where all is gathered in 16 bit and each block's inputs are
cast, as is common, bf16 weights went 3.5 to 4.6 times as far from one process's (bench/parity.py),
and torch's BatchNorm fails.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

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
    _check_torch(process)
    _check_shapes(model)
    meta = sort_meta(model, process)
    mesh = init_device_mesh(process.device.type, (process.world_size,))
    seen: set[Tensor] = set()
    for modules, policy in _groups(model, blocks, precision):
        for module in modules:
            _check_dtypes(module)
            _bring(module, process, meta.to_receive, seen)
        if modules == [model] and options.reshard_after_forward:
            fully_shard(model, mesh=mesh, mp_policy=policy)  # kept gathered: backward begins here
        else:
            keep = options.reshard_after_forward
            fully_shard(modules, mesh=mesh, mp_policy=policy, reshard_after_forward=keep)
    materialize(model, process, meta.to_write, blocks)
    _bring(model, process, meta.to_receive, seen)  # the buffers that have just been written
    for name in options.methods:
        register_fsdp_forward_method(model, name)
    _give_back(model)


def _give_back(model: nn.Module) -> None:
    """Have the model hold sharded parameters whenever no backward is awaited.

    torch leaves some gathered after a forward: whoever then goes through `model.parameters()`
    meets stand-ins without gradients, and `model.zero_grad()` leaves the real ones as they are.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    zero_grad = model.zero_grad

    def reshard() -> None:
        for part in parts:
            part.reshard()

    def after_forward(*_: object) -> None:
        if not torch.is_grad_enabled():
            reshard()

    def zero_sharded(set_to_none: bool = True) -> None:
        reshard()  # backward gathers them again
        zero_grad(set_to_none)

    uncompiled: Any = torch.compiler.disable
    model.register_forward_hook(uncompiled(after_forward))
    wrapped = functools.update_wrapper(zero_sharded, zero_grad)
    model.zero_grad = wrapped  # type: ignore[method-assign]


def _groups(
    model: nn.Module, blocks: Sequence[nn.Module], precision: Precision
) -> Iterator[tuple[list[nn.Module], MixedPrecisionPolicy]]:
    """What is gathered together and in which precision, inner before outer."""
    whole = MixedPrecisionPolicy()
    if precision == "no":
        yield from (([module], whole) for module in [*reversed(blocks), model])
        return
    # Inputs are left to autocast, gradients are added up in float32.
    half = MixedPrecisionPolicy(
        param_dtype=_COMPUTE_DTYPES[precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    taken: set[nn.Module] = set()
    for block in reversed(blocks):
        norms = [m for m in block.modules() if m not in taken and m is not block and _is_norm(m)]
        taken.update(norms, [block])
        if norms:
            yield norms, whole
        yield [block], whole if _is_norm(block) else half
    yield [model], whole


def _is_norm(module: nn.Module) -> bool:
    """By name, since models bring their own; what is taken for one wrongly is gathered as it is."""
    own = any(True for _ in module.parameters(recurse=False))
    return own and "norm" in type(module).__name__.lower()


def _bring(module: nn.Module, process: Process, awaited: set[Tensor], seen: set[Tensor]) -> None:
    """Rank 0's plain tensors to every rank's device; what no rank has yet waits."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor in awaited and tensor.is_meta:
            tensor = memory_for(module, tensor, process.device)
        if tensor in seen or is_sharded(tensor) or tensor.is_meta:
            continue
        seen.add(tensor)
        tensor.data = tensor.data.to(process.device).contiguous()
        wire.broadcast_into(process, tensor, 0)


def _check_torch(process: Process) -> None:
    """Raises DiagError on the CPU with a torch whose FSDP does not run there, or adds up only."""
    if process.device.type != "cpu":
        return
    if not (torch_private.runs_fsdp(process.device) and _gloo_averages(process)):
        raise DiagError(
            "torch-unsupported",
            f"FSDP on the CPU does not work with torch {torch.__version__}: it "
            "does not run there before 2.7, and some later versions add gradients up where they "
            "ask for the mean.",
            hint="Use torch 2.13 or newer, or strategy='ddp'.",
        )


def _gloo_averages(process: Process) -> bool:
    """Whether FSDP's way of averaging gradients does so here. Collective."""
    # torch renamed it after 2.12; the old name warns from then on.
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    mean = torch.empty(1)
    try:
        reduce_scatter(mean, torch.ones(process.world_size), op=dist.ReduceOp.AVG)
    except RuntimeError:
        return False
    return mean.item() == 1.0


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
