"""What a script says about its own steps. Without diag's probes each of these does nothing."""

from __future__ import annotations

import time
from contextlib import ContextDecorator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diag.probes.session import Session


def _session() -> Session | None:
    """The probes of this process, if any; looked up late, for the command line's start."""
    from diag.probes import current

    return current.session


def samples(count: int) -> None:
    """Say how many samples this rank has just trained on; outranks what diag reads off the loader.

    Call it once per micro-batch, from the training loop.

    Args:
        count: samples of this rank's micro-batch, at least 0.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"diag.samples takes a number of samples, got {count}")
    session = _session()
    if session is not None:
        session.samples(int(count))


class span(ContextDecorator):  # used like a function
    """Label a part of the step, as `with diag.span("augment"):` or `@diag.span("augment")`.

    The report shows its time per step on each rank, beside the phases: a span may lie within one
    phase or across several, and spans may be nested. It is the host's time; what the GPU does
    meanwhile is not waited for.

    Args:
        name: how the report calls it; the same on all ranks.
    """

    def __init__(self, name: str) -> None:
        self.name = str(name)
        self._began: list[int] = []

    def __enter__(self) -> span:
        self._began.append(time.monotonic_ns())
        return self

    def __exit__(self, *_: object) -> None:
        began = self._began.pop()
        duration = time.monotonic_ns() - began
        session = _session()
        if session is not None:
            session.span(self.name, began, duration)
