"""The models of a job: checked, placed by one strategy, and their optimizers kept pointing at them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diag.engine import wire
from diag.engine.options import DDPOptions, FSDPOptions, Precision, Strategy
from diag.engine.precision import autocast_forward
from diag.engine.process import Process
from diag.errors import DiagError, UsageError

Chosen = Literal["none", "ddp", "fsdp"]


class Models:
    """Places models in place, all by the same strategy.

    Attributes:
        strategy: "auto" until the first model has come; "none" in a single process.
        why: what "auto" went by, in words with numbers; "" if it did not choose.
        placed: the models that take part in training or evaluation, in the order they came.
    """

    def __init__(
        self,
        process: Process,
        strategy: Strategy,
        precision: Precision,
        ddp: DDPOptions,
        fsdp: FSDPOptions,
    ) -> None:
        if strategy not in get_args(Strategy):
            raise UsageError(
                "unknown-strategy",
                f"strategy={strategy!r} is not one of {', '.join(map(repr, get_args(Strategy)))}.",
                '"ddp" keeps the whole model on every rank, "fsdp" a part; "auto" takes what fits.',
            )
        self.process = process
        self.strategy: Strategy | Literal["none"] = strategy if process.distributed else "none"
        self.why = ""
        self.placed: list[nn.Module] = []
        self._precision = precision
        self._ddp, self._fsdp = ddp, fsdp
        self._before: list[tuple[nn.Module, weakref.WeakValueDictionary[str, Tensor]]] = []

    def __contains__(self, model: nn.Module) -> bool:
        return any(model is one for one in self.placed)

    def decide(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        """Choose the strategy, if that was left to us; all ranks choose alike. Collective then."""
        trained = [model for model in models if is_trainable(model)]
        if self.strategy != "auto" or not trained:
            return
        from diag.engine.placement import choose_strategy

        free = min(numbers[0] for numbers in wire.exchange(self.process, [self._free_bytes()]))
        choice = choose_strategy(trained, optimizers, self.process, free)
        self.strategy, self.why = choice.strategy, choice.why

    def _free_bytes(self) -> int:
        """Memory this rank may fill: its device's, or its share of the node's."""
        device = self.process.device
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0]
        available: int = psutil.virtual_memory().available
        return available // self.process.local_world_size

    def add(self, model: nn.Module, move: bool, train: bool) -> None:
        """Check the model and place it: on the device, synchronized or sharded. Idempotent.

        Args:
            move: put it on the device.
            train: False for a model that is only evaluated: it is not synchronized.
        """
        if model in self:
            return
        check_model(model, self.process)
        before = dict(model.named_parameters())
        self._place(model, self._strategy_for(model, train), move)
        autocast_forward(model, self._precision, self.process.device)
        self.placed.append(model)
        self._before.append((model, weakref.WeakValueDictionary(before)))

    def _strategy_for(self, model: nn.Module, train: bool) -> Chosen:
        if self.strategy == "fsdp" and train:
            return "fsdp"
        return "ddp" if self.strategy == "ddp" and train and is_trainable(model) else "none"

    def _place(self, model: nn.Module, strategy: Chosen, move: bool) -> None:
        from diag.engine.placement import place

        if strategy == "none" and (not move or is_dispatched(model)):
            return
        place(model, self.process, strategy, self._ddp, self._fsdp, self._precision)

    def follow(self, optimizer: Optimizer) -> None:
        """Have the optimizer hold the parameters that placing put in the place of its own.

        Raises:
            DiagError: it has stepped with them, so its state is of another shape now.
        """
        from diag.engine.placement import remap_optimizer

        for model, known in self._before:
            remap_optimizer(optimizer, dict(known), model)

    def set_sync(self, model: nn.Module, on: bool) -> None:
        """Whether the model's next gradients go to all ranks."""
        if self.process.distributed and model in self:
            from diag.engine.placement import set_gradient_sync

            set_gradient_sync(model, on)

    def trained(self) -> list[nn.Module]:
        return [model for model in self.placed if is_trainable(model)]

    def parameters(self) -> Iterable[Tensor]:
        return (p for model in self.placed for p in model.parameters())

    def clear(self) -> None:
        self.placed.clear()
        self._before.clear()


def is_trainable(model: nn.Module) -> bool:
    return any(p.requires_grad for p in model.parameters())


def is_dispatched(model: nn.Module) -> bool:
    """Whether the model's layers were spread over devices by `load_checkpoint_and_dispatch`."""
    return getattr(model, "hf_device_map", None) is not None


def check_model(model: nn.Module, process: Process) -> None:
    """Refuse a model that cannot be trained by several ranks.

    Raises:
        DiagError: its parameters lie on several devices.
    """
    devices = Counter(str(p.device) for p in model.parameters())
    if len(devices) < 2 or (is_dispatched(model) and not process.distributed):
        return
    listed = ", ".join(f"{number} on {device}" for device, number in devices.items())
    raise DiagError(
        "model-on-two-devices",
        f"{type(model).__name__} has parameters on {len(devices)} devices ({listed}).",
        "Each rank trains on one device: leave the model where it was built, or call "
        "model.to(engine.device). Too large for one? Engine(strategy='fsdp').",
    )
