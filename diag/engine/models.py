"""The models of a job: checked, placed by one strategy, and their optimizers kept pointing at them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from diag.engine import placement
from diag.engine.big.dispatch import is_dispatched
from diag.engine.options import DDPOptions, FSDPOptions, Precision, Strategy
from diag.engine.precision import autocast_forward
from diag.engine.process import Process
from diag.errors import DiagError, UsageError


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
        self._before: list[tuple[nn.Module, weakref.WeakValueDictionary[str, nn.Parameter]]] = []

    def __contains__(self, model: nn.Module) -> bool:
        return any(model is one for one in self.placed)

    def decide(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        """Choose the strategy, if that was left to us; all ranks choose alike. Collective then."""
        trained = [model for model in models if is_trainable(model)]
        if self.strategy != "auto" or not trained:
            return
        free = placement.free_bytes(self.process)
        choice = placement.choose_strategy(trained, optimizers, self.process, free, self._ddp)
        self.strategy, self.why = choice.strategy, choice.why

    def add(self, model: nn.Module, move: bool, train: bool) -> None:
        """Place the model: on the device, synchronized or sharded. Idempotent.

        Args:
            move: put it on the device, if it is not distributed.
            train: False for a model that is only evaluated: every rank keeps its own.

        Raises:
            DiagError: it cannot be trained so.
        """
        if model in self:
            return
        before = dict(model.named_parameters())
        if is_spread(model):
            self._check_dispatched(model)
        elif train and (move or self.process.distributed):
            self._place(model)
        elif move:
            model.to(self.process.device)
        autocast_forward(model, self._precision, self.process.device, self._methods(model))
        self.placed.append(model)
        self._before.append((model, weakref.WeakValueDictionary(before)))

    def _methods(self, model: nn.Module) -> list[str]:
        return [name for name in self._fsdp.methods if hasattr(model, name)]

    def _place(self, model: nn.Module) -> None:
        strategy = self.strategy
        # "auto" is left where no model has been trainable: placing says what is wrong with it.
        placement.place(
            model,
            self.process,
            "ddp" if strategy == "auto" else strategy,
            self._ddp,
            self._fsdp,
            self._precision,
        )

    def _check_dispatched(self, model: nn.Module) -> None:
        if self.process.distributed:
            raise DiagError(
                "model-dispatched",
                f"{type(model).__name__} was spread over devices by load_checkpoint_and_dispatch, "
                "which is for a single process.",
                "Load it plainly and train it with Engine(strategy='fsdp').",
            )

    def follow(self, optimizer: Optimizer) -> None:
        """Have the optimizer hold the parameters that placing put in the place of its own.

        Raises:
            DiagError: it has stepped with them, so its state is of another shape now.
        """
        for model, known in self._before:
            placement.remap_optimizer(optimizer, dict(known), model)

    def set_sync(self, model: nn.Module, on: bool) -> None:
        """Whether the model's next gradients go to all ranks."""
        placement.set_gradient_sync(model, on)

    def trained(self) -> list[nn.Module]:
        return [model for model in self.placed if is_trainable(model)]

    def parameters(self) -> Iterable[Tensor]:
        return (p for model in self.placed for p in model.parameters())

    def clear(self) -> None:
        self.placed.clear()
        self._before.clear()


def is_trainable(model: nn.Module) -> bool:
    return any(p.requires_grad for p in model.parameters())


def is_spread(model: nn.Module) -> bool:
    """Whether `load_checkpoint_and_dispatch`, or Accelerate's, spread the layers over devices.

    A map with one place leaves a plain model there.
    """
    device_map = getattr(model, "hf_device_map", None) or {}
    return is_dispatched(model) or len(set(device_map.values())) > 1
