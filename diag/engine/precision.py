"""Mixed precision: where autocast applies, and the loss scale that float16 needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from diag.engine.options import Precision
from diag.engine.trees import mapped
from diag.errors import UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def parse(value: object) -> Precision:
    """The precision a user named; None is "no".

    Raises:
        UsageError: another one.
    """
    name = "no" if value is None else str(value).lower()
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    why = "fp8 needs kernels that torch does not have. " if name == "fp8" else ""
    raise UsageError(
        "unknown-precision",
        f"mixed_precision={value!r} is not one of {', '.join(map(repr, get_args(Precision)))}.",
        f'{why}Take "bf16" where the device has it, else "fp16".',
    )


def autocast(
    precision: Precision, device: torch.device, enabled: bool = True, cache: bool | None = None
) -> AbstractContextManager[Any]:
    """torch.autocast for `precision`; nothing for "no"."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision], enabled, cache)


def autocast_forward(
    model: nn.Module, precision: Precision, device: torch.device, methods: Iterable[str] = ()
) -> None:
    """Have the model's forward, and `methods`, run under autocast and give float32. In place.

    What another engine led so before is led by this precision alone.
    """
    for name in dict.fromkeys(["forward", *methods]):
        function = getattr(model, name)
        if isinstance(getattr(function, "func", None), _Autocast):
            (function,) = function.args
            setattr(model, name, function)
        if precision != "no":
            # A partial, because a deep copy of one is led to the copy's own forward.
            led = functools.partial(_Autocast(precision, device), function)
            setattr(model, name, functools.update_wrapper(led, function))


@dataclass(frozen=True)
class _Autocast:
    """Calls a function under autocast."""

    precision: Precision
    device: torch.device

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with autocast(self.precision, self.device):
            outputs = function(*args, **kwargs)
        return to_float32(outputs)


def to_float32(outputs: Any) -> Any:
    """Nested outputs with every half-precision tensor in float32; the same object if there is none."""
    return mapped(outputs, lambda leaf: leaf.float() if _is_half(leaf) else leaf)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


class LossScale:
    """A GradScaler whose update waits until every optimizer of the iteration has stepped.

    torch asks for one `update()` per iteration, after the last optimizer. Which is the last is
    known when the next loss is scaled, so it happens there: two optimizers that step after one
    backward unscale by the same number.

    Attributes:
        scaler: torch's own; its state is what a checkpoint keeps.
    """

    def __init__(self, device: torch.device, **options: Any) -> None:
        self.scaler = GradScaler(device.type, **options)
        self._scaled = False  # a loss has been, since the last update
        self._unscaled: set[int] = set()
        self._stepped: set[int] = set()

    def scale(self, loss: Tensor) -> Tensor:
        self.settle()
        self._scaled = True
        return self.scaler.scale(loss)

    def governs(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer's next step must go through the scaler: it has scaled gradients."""
        return (
            self._scaled
            and id(optimizer) not in self._stepped
            and any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        )

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, once between two steps."""
        if id(optimizer) not in self._unscaled and self.governs(optimizer):
            self.scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def step(self, optimizer: Optimizer) -> Any:
        """`optimizer.step()`, unless a gradient is not finite."""
        self._stepped.add(id(optimizer))
        return self.scaler.step(optimizer)

    def settle(self) -> None:
        """Adjust the scale to what the steps since the last time met."""
        if not self._stepped:
            return
        self.scaler.update()
        self._scaled = False
        self._unscaled.clear()
        self._stepped.clear()
