"""Engine's members about precision, and about gradients once they are there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from diag.engine import gradients, precision
from diag.engine.options import Precision
from diag.engine.process import Process
from diag.engine.surface_refused import refuses


class GradientSurface:
    """See `diag.engine.gradients` and `diag.engine.precision`."""

    process: Process
    _precision: Precision
    _scale: precision.LossScale | None
    _optimizers: list[Optimizer]

    @property
    def sync_gradients(self) -> bool:
        raise NotImplementedError

    @property
    def mixed_precision(self) -> Precision:
        """ "no", "bf16" or "fp16"."""
        return self._precision

    @property
    def scaler(self) -> GradScaler | None:
        """torch's loss scale; None without "fp16"."""
        return self._scale.scaler if self._scale is not None else None

    @refuses("autocast_handler", "engine.autocast(enabled=…, cache_enabled=…).")
    def autocast(
        self, enabled: bool = True, cache_enabled: bool | None = None
    ) -> AbstractContextManager[Any]:
        """torch.autocast for the engine's precision: for losses and methods other than forward."""
        return precision.autocast(self._precision, self.process.device, enabled, cache_enabled)

    def unscale_gradients(self, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> None:
        """Divide gradients by the loss scale, once between two steps; without "fp16" nothing happens.

        Args:
            optimizer: one or several; None: all that were prepared.
        """
        if self._scale is None:
            return
        if isinstance(optimizer, Optimizer):
            optimizer = [optimizer]
        for one in self._optimizers if optimizer is None else optimizer:
            self._scale.unscale(one)

    def clip_grad_norm_(
        self, parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0
    ) -> Tensor:
        """Scale the gradients of all ranks so that their norm is at most `max_norm`.

        In the middle of an accumulation window nothing is scaled.

        Returns:
            The norm before, over all shards; in the middle of a window this rank's so far.
        """
        given = self._unscaled(parameters)
        if not self.sync_gradients:
            return gradients.local_norm(given, norm_type)
        return gradients.clip_norm_(given, max_norm, norm_type)

    def clip_grad_value_(self, parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
        """Bring every element of the gradients into [-clip_value, clip_value].

        In the middle of an accumulation window nothing is changed.
        """
        given = self._unscaled(parameters)
        if self.sync_gradients:
            gradients.clip_value_(given, clip_value)

    def _unscaled(self, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
        """The parameters; once their gradients are whole, without the loss scale."""
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if self._scale is not None and self.sync_gradients:
            asked = {id(p) for p in given}
            for optimizer in self._optimizers:
                if any(id(p) in asked for g in optimizer.param_groups for p in g["params"]):
                    self._scale.unscale(optimizer)
        return given
