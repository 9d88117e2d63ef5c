"""Gradient accumulation: which micro-batch of which window this is, and what it weighs.

A window is the micro-batches between two optimizer steps. It holds `steps` of them, fewer at the
end of a loader. Gradients are synchronized in its last one alone.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from diag.errors import DiagError


class Position(Protocol):
    """Where a loader stands; see `PreparedLoader`. All but `local_samples` is equal on all ranks."""

    @property
    def end_on_some_rank(self) -> bool: ...
    @property
    def common_length(self) -> int: ...
    @property
    def batches_yielded(self) -> int: ...
    @property
    def local_samples(self) -> int | None: ...
    @property
    def global_samples(self) -> int | None: ...


class Window:
    """The accumulation window of a set of models.

    Attributes:
        steps: micro-batches of a full window.
        held: micro-batches begun in this one; 0 before the first `accumulate`.
        planned: how many it is expected to hold: mean losses are divided by it.
        synchronizes: the gradients of the current micro-batch go to all ranks.
        partial: it has gradients, but not yet all of them.
        settled: its gradients are whole and have their final scale.
        summed: its losses are sums over items, not means; None before the first.
        items: how many items this rank's sums were over so far.
        unit: what every sum has been divided by beforehand, equal on all ranks.
    """

    def __init__(self, steps: int, follows_loader: bool = True) -> None:
        self.steps = steps
        self.held = 0
        self.planned = steps
        self.synchronizes = True
        self.partial = False
        self.settled = False
        self.summed: bool | None = None
        self.items: Tensor | None = None
        self.unit: Tensor | float = 1.0
        self._follows_loader = follows_loader
        self._collects = False
        self._counted_at = 0

    def begin_micro_batch(self, position: Position | None) -> None:
        """Count one more micro-batch; it opens a new window if the last one was complete.

        Args:
            position: the loader its batch came from; None if there is none.
        """
        if self.held == 0 or self.synchronizes:
            self._open(position)
        self.held += 1
        last = self._follows_loader and position is not None and position.end_on_some_rank
        self.synchronizes = self.held >= self.planned or last

    def _open(self, position: Position | None) -> None:
        left = _batches_left(position) if self._follows_loader else None
        self.planned = self.steps if left is None else min(self.steps, left)
        self.held = self._counted_at = 0
        self.partial = self.settled = False
        self.summed = self.items = None
        self.unit = 1.0

    def count_items(self, items: Tensor) -> None:
        """Add what the current micro-batch's sum was over.

        Raises:
            DiagError: a second sum in one micro-batch: its items would count twice.
        """
        if self._counted_at == self.held:
            raise DiagError(
                "items-counted-twice",
                "A second backward with num_items in one micro-batch of an accumulation window.",
                "Add the losses and call backward once, or give each model its own "
                "`with engine.accumulate(model)`.",
            )
        self._counted_at = self.held
        self.items = items if self.items is None else self.items + items

    def collected(self) -> None:
        """A backward has added its gradients."""
        self._collects = True
        self.partial = not self.synchronizes

    @property
    def may_clear(self) -> bool:
        """Whether the gradients can be set to zero without losing a part of a window.

        True before the window's first backward and after its synchronizing one, so that
        `zero_grad` works at the beginning of a micro-batch as it does at its end. Where
        backward was never called through the engine, only `synchronizes` is known.
        """
        return not self.partial if self._collects else self.synchronizes

    @property
    def stands_alone(self) -> bool:
        """Whether the current micro-batch is all there is to the window."""
        return self.held == 0 or self.planned == 1

    @property
    def divisor(self) -> int:
        """What a mean loss is divided by."""
        return self.held if self.settled else self.planned

    @property
    def correction(self) -> float:
        """What a complete window's gradients must be multiplied by: it held another number than planned."""
        return self.planned / self.held if self.held else 1.0


def _batches_left(position: Position | None) -> int | None:
    """Batches from the current one to the last that every rank gets; None if that is not known.

    Equal on all ranks: a window that some rank planned shorter would not be weighed alike.
    """
    if position is None:
        return None
    try:
        left = position.common_length - position.batches_yielded + 1
    except TypeError:  # a dataset without a length
        return None
    return left if left > 0 else None  # more than it said, or the last of a few ranks


def share(position: Position | None, world_size: int) -> float:
    """How much this rank's mean loss weighs among all ranks': 1, unless their batches differ in size.

    With n of the N ranks' m samples it is n·N/m: the mean over ranks of the weighted means is
    then the mean over all samples.
    """
    if position is None or world_size == 1:
        return 1.0
    local, total = position.local_samples, position.global_samples
    if local is None or not total:
        return 1.0
    return local * world_size / total


def power_of_two(value: Tensor) -> Tensor:
    """The largest power of two not above `value`: to divide by it is exact."""
    return torch.exp2(torch.floor(torch.log2(value.clamp(min=1))))
