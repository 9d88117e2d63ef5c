"""DDP or FSDP? Arithmetic on bytes, and the words that show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diag.engine import torch_private
from diag.engine.options import DDPOptions
from diag.engine.process import Process

# Assumed for activations, workspaces and fragmentation; they depend on the batch, not yet seen.
ACTIVATION_SHARE = 0.4
# Copies of its parameters that an optimizer keeps, by class; of those not listed, two are assumed.
_STATE_COPIES = {
    "Adafactor": 0, "Adagrad": 1, "ASGD": 1, "Lion": 1, "Muon": 1,
    "Adadelta": 2, "Adam": 2, "Adamax": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Rprop": 2,
}  # fmt: skip
_ASSUMED_COPIES = 2


@dataclass(frozen=True)
class Choice:
    """What to distribute by, and why in one sentence with its numbers.

    Attributes:
        needed, available: bytes DDP would need on each rank, and may take there.
    """

    strategy: Literal["none", "ddp", "fsdp"]
    why: str
    needed: int
    available: int


@dataclass(frozen=True)
class _Need:
    """Bytes on a rank that holds all of it."""

    parameters: int
    gradients: int
    buckets: int
    state: int
    state_of: str

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.buckets + self.state

    def __str__(self) -> str:
        return (
            f"parameters {_words(self.parameters)}, gradients {_words(self.gradients)}, "
            f"DDP's buckets {_words(self.buckets)}, {self.state_of} {_words(self.state)}"
        )


def choose_strategy(
    models: Sequence[nn.Module],
    optimizers: Sequence[Optimizer],
    process: Process,
    free_bytes: int,
    ddp: DDPOptions | None = None,
) -> Choice:
    """DDP while all it keeps on a rank fits beside the activations, else FSDP.

    Args:
        optimizers: those given so far; without one, AdamW's two copies are assumed.
        free_bytes: free on each rank's device, beside what lies there already.
    """
    need = _need(models, optimizers, ddp or DDPOptions())
    available = free_bytes + _resident(models, optimizers, process.device)
    usable = int(available * (1 - ACTIVATION_SHARE))
    if not process.distributed:
        return Choice("none", "one process: nothing to distribute.", need.total, available)
    kept = f"{ACTIVATION_SHARE:.0%} of it is left to activations, an assumption"
    if need.total <= usable:
        why = (
            f"strategy DDP, since the model fits on each rank: {_words(need.total)} ({need}) "
            f"of {_words(available)}; {kept}."
        )
        return Choice("ddp", why, need.total, available)
    if not torch_private.runs_fsdp(process.device):
        why = (
            f"strategy DDP, since torch {torch.__version__} cannot run FSDP on the CPU; each rank "
            f"would need {_words(need.total)} of {_words(available)}."
        )
        return Choice("ddp", why, need.total, available)
    share = (need.total - need.buckets) // process.world_size
    why = (
        f"strategy FSDP: with DDP each rank would need {_words(need.total)} ({need}), more than "
        f"{_words(usable)} of its {_words(available)}; {kept}. Sharded over {process.world_size} "
        f"ranks it is {_words(share)} each"
    )
    tight = "." if share <= usable else ", which is too much as well: expect to run out of memory."
    return Choice("fsdp", why + tight, need.total, available)


def _need(models: Sequence[nn.Module], optimizers: Sequence[Optimizer], ddp: DDPOptions) -> _Need:
    parameters = {p for model in models for p in model.parameters()}
    gradients = _bytes(p for p in parameters if p.requires_grad)
    buckets = 0 if ddp.gradient_as_bucket_view else gradients
    if not optimizers:
        state, state_of = _ASSUMED_COPIES * gradients, "AdamW's state (no optimizer given yet)"
    else:
        groups = [(o, group) for o in optimizers for group in o.param_groups]
        state = sum(_copies(o, group) * _bytes(group["params"]) for o, group in groups)
        state_of = " and ".join(dict.fromkeys(map(_state_of, optimizers)))
    return _Need(_bytes(parameters), gradients, buckets, state, state_of)


def _copies(optimizer: Optimizer, group: dict[str, object]) -> int:
    """Copies of a group's parameters that the optimizer keeps once it has stepped."""
    name = _known_name(optimizer)
    options = sum(bool(group.get(option)) for option in ("amsgrad", "momentum", "centered"))
    if name == "SGD":
        return options
    if name == "RMSprop":
        return 1 + options
    if name == "LBFGS":
        return 2 * int(str(group.get("history_size", 100)))
    copies = _STATE_COPIES.get(name, _ASSUMED_COPIES)
    return copies + (1 if group.get("amsgrad") else 0)


def _known_name(optimizer: Optimizer) -> str:
    """The name of the first class in its ancestry whose state is known; '' without one."""
    known = _STATE_COPIES.keys() | {"SGD", "RMSprop", "LBFGS"}
    return next((k.__name__ for k in type(optimizer).__mro__ if k.__name__ in known), "")


def _state_of(optimizer: Optimizer) -> str:
    name = type(optimizer).__name__
    return f"{name}'s state" if _known_name(optimizer) else f"{name}'s state (2 copies assumed)"


def _resident(
    models: Sequence[nn.Module], optimizers: Sequence[Optimizer], device: torch.device
) -> int:
    """Bytes of the training that lie on this kind of device already, and so count as available."""
    parameters = {p for model in models for p in model.parameters()}
    gradients = (p.grad for p in parameters if p.grad is not None)
    kept = (v for o in optimizers for state in o.state.values() for v in state.values())
    tensors = [*parameters, *gradients, *(v for v in kept if isinstance(v, Tensor))]
    return _bytes(t for t in tensors if t.device.type == device.type)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _words(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.1f} KiB"
