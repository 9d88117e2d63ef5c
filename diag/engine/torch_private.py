"""The only file of the engine that touches torch's private names.

Each function is one seam, with what it does where this torch lacks the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from diag.errors import DiagError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


def check_ddp_parts() -> None:
    """Raises DiagError where DDP's forward is not made of the two parts the engine calls."""
    parts = ("_pre_forward", "_post_forward")
    missing = [name for name in parts if not hasattr(DistributedDataParallel, name)]
    if missing:
        raise DiagError(
            "torch-unsupported",
            f"This torch's DistributedDataParallel has no {' and no '.join(missing)}.",
            hint="Wrap the model in DistributedDataParallel yourself, or use strategy='fsdp'.",
        )


def ddp_before_forward(
    ddp: DistributedDataParallel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first part of DDP's forward: buffers, buckets, the inputs' device."""
    # torch.compile cuts its graphs at the buckets of the DDP whose forward is under way.
    DistributedDataParallel._active_ddp_module = ddp
    part: Any = ddp._pre_forward
    moved: tuple[tuple[Any, ...], dict[str, Any]] = part(*args, **kwargs)
    return moved


def ddp_after_forward(ddp: DistributedDataParallel, output: Any) -> Any:
    """The last part of DDP's forward: expect the gradients that this output leads to."""
    part: Any = ddp._post_forward
    return part(output)


def ddp_forward_over() -> None:
    """To be called after each `ddp_before_forward`, whatever happened in between."""
    DistributedDataParallel._active_ddp_module = None


def runs_fsdp(device: torch.device) -> bool:
    """Whether this torch's fully_shard runs there; on the CPU it does from 2.7 on."""
    return device.type != "cpu" or hasattr(torch.cpu.Stream, "record_event")


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; `model` itself if it is no compiled one."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def wrapper_of(module: nn.Module) -> str:
    """The name of what already distributes this very module; '' if nothing does.

    By class name, so that FSDP need not be imported to ask.
    """
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _WRAPPERS:
            return _WRAPPERS[base.__name__]
    return ""


def class_name(module: nn.Module) -> str:
    """The name of the module's class, without what fully_shard puts before it."""
    ancestry = [base.__name__ for base in type(module).__mro__]
    if "FSDPModule" in ancestry:
        return ancestry[ancestry.index("FSDPModule") + 1]
    return ancestry[0]


_WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "DDP": "replicate",
    "ReplicateModule": "replicate",
}


def multiply_(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply every tensor in place, in few kernels where torch can."""
    together = getattr(torch, "_foreach_mul_", None)
    if together is not None and tensors:
        together(list(tensors), factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def synchronize_next_backward(ddp: DistributedDataParallel) -> None:
    """Have DDP synchronize in the next backward, though the forward ran without.

    Raises:
        DiagError: this torch prepares its reducer in another way.
    """
    try:
        prepare = ddp.reducer.prepare_for_backward
    except AttributeError as error:
        raise DiagError(
            "torch-unsupported",
            f"torch {torch.__version__} does not let a backward alone synchronize ({error}).",
            hint="Run the last forward outside no_sync instead.",
        ) from error
    ddp.require_backward_grad_sync = True
    ddp.require_forward_param_sync = True
    prepare([])


def job_store() -> Store | None:
    """The key-value store the job's ranks met at; None without one."""
    get = getattr(distributed_c10d, "_get_default_store", None)
    if get is None or not dist.is_initialized():
        return None
    store: Store = get()
    return store
