"""A learning-rate scheduler that steps once per optimizer step: the user's own object."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from diag.engine.optimizer import gate_of

_MARK = "_steps_with_optimizer"


def step_with_optimizer(scheduler: LRScheduler) -> None:
    """Have `scheduler.step` act only if its optimizer has stepped since it last did. In place.

    So it stands still in the middle of an accumulation window and after a step that a loss scale
    left out; called once per epoch it acts as ever. A scheduler whose optimizer was never
    prepared is left as it is. Idempotent.
    """
    kind = type(scheduler)
    if getattr(kind, _MARK, False):
        return
    seen = 0

    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> None:
        nonlocal seen
        gate = gate_of(self.optimizer)
        if gate is not None and not gate.released:
            if gate.taken == seen:
                return
            seen = gate.taken
        kind.step(self, *args, **kwargs)

    # A class of its own, because a scheduler's state_dict holds all of the object's attributes.
    members = {"step": step, "__module__": kind.__module__, "__doc__": kind.__doc__, _MARK: True}
    scheduler.__class__ = type(kind.__name__, (kind,), members)
