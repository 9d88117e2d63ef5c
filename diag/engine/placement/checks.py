"""What is wrong with a model, found before any rank waits for another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from diag.engine.placement.shards import is_sharded
from diag.errors import DiagError

_LISTED = 5


def check_trainable(model: nn.Module) -> None:
    """Raises DiagError for a model that cannot be trained where it is called."""
    name = type(model).__name__
    parameters = dict(model.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        what = (
            f"none of its {len(parameters)} parameters requires"
            if parameters
            else "it has none to require"
        )
        raise DiagError(
            "nothing-to-train",
            f"{name} has no trainable parameter: {what} a gradient.",
            hint="Do not prepare it; move it with model.to(engine.device).",
        )
    if type(model).forward is nn.Module.forward and "forward" not in vars(model):
        raise DiagError(
            "model-without-forward",
            f"{name} has no forward of its own, so nothing tells when its gradients are needed.",
            hint="Prepare the modules it holds, or put them into a module with a forward.",
        )
    lazy = [
        n
        for n, t in _tensors(model)
        if isinstance(t, (UninitializedParameter, UninitializedBuffer))
    ]
    if lazy:
        raise DiagError(
            "lazy-parameters",
            f"{name} has lazy parameters without a shape yet: {listing(lazy)}.",
            hint="Call the model once on a sample batch before it is prepared.",
        )
    check_one_device({n: t.device for n, t in parameters.items()})


def check_one_device(devices: Mapping[str, torch.device]) -> None:
    """Raises DiagError for parameters (by name) on two devices; meta counts as none."""
    names: dict[torch.device, list[str]] = {}
    for name, device in devices.items():
        if device.type != "meta":
            names.setdefault(device, []).append(name)
    if len(names) > 1:
        spread = "; ".join(f"{len(n)} on {device} ({n[0]} …)" for device, n in names.items())
        raise DiagError(
            "parameters-on-two-devices",
            f"The model's parameters lie on {len(names)} devices: {spread}.",
            hint="Leave the model where it was built: prepare moves it to each rank's device.",
        )


def check_none_distributed_inside(
    model: nn.Module, distributed_by: Callable[[nn.Module], str]
) -> None:
    """Raises DiagError where a part of the model is distributed already and the whole is not."""
    for name, module in model.named_modules():
        wrapper = distributed_by(module)
        if wrapper and module is not model:
            raise DiagError(
                "partly-distributed",
                f"{name} is already distributed by {wrapper}, the model around it is not.",
                hint="Distribute the whole model yourself, or none of it.",
            )
    sharded = [name for name, p in model.named_parameters() if is_sharded(p)]
    if sharded:
        raise DiagError(
            "parameters-sharded",
            f"{len(sharded)} parameters are DTensors already ({listing(sharded)}), as tensor "
            "parallelism leaves them; the engine distributes plain ones over all ranks.",
            hint="Distribute such a model yourself, with torch's fully_shard on a mesh of its own.",
        )


def check_no_gradients(model: nn.Module) -> None:
    """Raises DiagError for gradients of before: they are this rank's alone."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    if names:
        raise DiagError(
            "gradients-before-prepare",
            f"{len(names)} parameters have gradients of a backward before prepare "
            f"({listing(names)}); they were never averaged over the ranks.",
            hint="Call optimizer.zero_grad() first, or prepare before the first backward.",
        )


def listing(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
