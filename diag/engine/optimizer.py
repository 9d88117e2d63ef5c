"""An optimizer that acts only on whole gradients: the user's own object, its step watched over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from diag.engine.accumulation import Window
from diag.engine.precision import LossScale
from diag.errors import DiagError

_GATE = "_diag_gate"


class StepGate:
    """Stands before one optimizer's `step` and `zero_grad`.

    In the middle of an accumulation window both do nothing. A step goes through the loss scale
    where there is one. The optimizer stays the object it was: its state, its parameter groups
    and whatever else holds it, a scheduler for one, need not know.

    Attributes:
        taken: steps that changed the parameters or could have.
        window: gives the accumulation window the training is in.
        scale: the loss scale; None without float16.
    """

    def __init__(self, window: Callable[[], Window], scale: LossScale | None) -> None:
        self.taken = 0
        self.window = window
        self.scale = scale
        self.released = False
        self._through = False
        self._overflow: Tensor | bool = False
        self._stepped_since_clear = False

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last step was left out because a gradient overflowed."""
        return bool(self._overflow)

    def step(self, optimizer: Optimizer, inner: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """What the optimizer's `step` does now; `inner` is what it did."""
        if self._through:  # the loss scale lets the step happen
            found = getattr(optimizer, "found_inf", None)  # a fused one looks for itself
            self._overflow = found if isinstance(found, Tensor) else False
            return inner(*args, **kw)
        if not self.released and not self.window().synchronizes:
            return None
        self._stepped_since_clear = True
        if self.released or self.scale is None or not self.scale.governs(optimizer):
            self._overflow = False
            self.taken += 1
            return inner(*args, **kw)
        return self._scaled_step(optimizer, self.scale, args, kw)

    def _scaled_step(
        self, optimizer: Optimizer, scale: LossScale, args: tuple[Any, ...], kw: dict[str, Any]
    ) -> Any:
        if any(value is not None for value in (*args, *kw.values())):
            raise DiagError(
                "closure-with-fp16",
                f"{type(optimizer).__name__}.step was given a closure, and a loss scale cannot "
                "look at the gradients of a closure.",
                'Use mixed_precision="bf16", or call step() without one.',
            )
        self._overflow, self._through = True, True
        try:
            result = scale.step(optimizer)
        finally:
            self._through = False
        self.taken += not self.step_was_skipped
        return result

    def zero_grad(self, inner: Callable[..., Any], *args: Any, **kw: Any) -> None:
        """What the optimizer's `zero_grad` does now; `inner` is what it did."""
        if self.released or self._stepped_since_clear or self.window().may_clear:
            self._stepped_since_clear = False
            inner(*args, **kw)


def gate_of(optimizer: Optimizer) -> StepGate | None:
    """The gate before the optimizer; None if it was never prepared."""
    gate: StepGate | None = vars(optimizer).get(_GATE)
    return gate


def put_gate(
    optimizer: Optimizer, window: Callable[[], Window], scale: LossScale | None
) -> StepGate:
    """Put a gate before the optimizer, or have the one it has obey this engine. In place."""
    gate = gate_of(optimizer)
    if gate is not None:
        gate.window, gate.scale, gate.released = window, scale, False
        return gate
    gate = StepGate(window, scale)
    setattr(optimizer, _GATE, gate)
    _guard(optimizer, gate)
    return gate


def _guard(optimizer: Optimizer, gate: StepGate) -> None:
    # On the object, not its class: pickling and copying leave them behind, as they must. Bound
    # methods that carry the marks of what they wrap, because schedulers look for both.
    inner_step, inner_zero_grad = optimizer.step, optimizer.zero_grad

    @functools.wraps(inner_step)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return gate.step(self, inner_step, *args, **kwargs)

    @functools.wraps(inner_zero_grad)
    def zero_grad(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        gate.zero_grad(inner_zero_grad, *args, **kwargs)

    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
    optimizer.zero_grad = MethodType(zero_grad, optimizer)  # type: ignore[method-assign]
