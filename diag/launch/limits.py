"""Two limits on a script, both at its optimizer's step, with or without probes.

`--max-steps` ends every rank right after the same step; a script that distributes nothing is
stopped before its first, lest N ranks train N copies. Both leave by SystemExit, so that the
user's `finally` blocks run. Needs torch; only torch's public hooks are used.
"""

from __future__ import annotations

import os
import sys
import weakref
from types import FrameType
from typing import Any

import torch.distributed
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class StepLimitReached(SystemExit):
    """--max-steps: the rank has taken its last step."""

    def __init__(self) -> None:
        super().__init__(0)


class NotDistributed(SystemExit):
    """Several ranks, and the script is about to train without knowing of the others."""

    def __init__(self, location: dict[str, Any] | None) -> None:
        super().__init__(2)
        self.location = location


class FirstOptimizer:
    """Counts the steps of the optimizer that steps first; others belong to its steps."""

    def __init__(self) -> None:
        self.steps = 0
        self._first: weakref.ref[Optimizer] | None = None

    def count(self, optimizer: Optimizer) -> int:
        """Note a step of `optimizer`; the number of steps so far."""
        first = self._first() if self._first is not None else None
        if first is None:  # none yet, or the script made a new one (per epoch, say)
            self._first = weakref.ref(optimizer)
            first = optimizer
        self.steps += optimizer is first
        return self.steps


def install(max_steps: int | None, guard: bool) -> None:
    """Set the limits in this process; children forked later are not bound by them."""
    if guard:
        _guard_first_step(os.getpid())
    if max_steps is not None:
        _stop_after(max_steps, os.getpid())


def _stop_after(max_steps: int, pid: int) -> None:
    counter = FirstOptimizer()

    def after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if os.getpid() == pid and counter.count(optimizer) >= max_steps:
            raise StepLimitReached

    register_optimizer_step_post_hook(after_step)


def _guard_first_step(pid: int) -> None:
    def before_step(_optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        handle.remove()  # only the first step is in question
        if os.getpid() == pid and not _is_distributed():
            raise NotDistributed(user_location(sys._getframe(1)))

    handle = register_optimizer_step_pre_hook(before_step)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def user_location(frame: FrameType | None) -> dict[str, Any] | None:
    """{file, line, function} of the innermost frame outside torch and diag."""
    inside = (f"{os.sep}torch{os.sep}", f"{os.sep}diag{os.sep}launch{os.sep}")
    while frame is not None:
        code = frame.f_code
        if not any(part in code.co_filename for part in inside):
            return {"file": code.co_filename, "line": frame.f_lineno, "function": code.co_name}
        frame = frame.f_back
    return None
