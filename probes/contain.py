"""A probe that fails is contained, counted and reported; the host never hears of it.

Every call from the training into the probes passes here, so here is also where their cost is
measured: in every eighth step, since reading a clock twice a call would cost as much as many
of the calls themselves.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

METER_EVERY = 8

log = logging.getLogger("diag.probes")
log.addHandler(logging.NullHandler())
log.propagate = False


class Meter:
    """What the probes cost the training thread per step, in ns: measured now and then.

    Attributes:
        on: whether calls are timed now.
        step_ns: the newest measured step's cost.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.on = True
        self.step_ns = 0
        self._sum_ns = 0
        self._inside = False
        self._steps = 0

    def timed(self, probe: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._inside:  # its caller's time holds it
            return probe(*args, **kwargs)
        self._inside = True
        started = self.clock()
        try:
            return probe(*args, **kwargs)
        finally:
            self._sum_ns += self.clock() - started
            self._inside = False

    def step_ended(self) -> int:
        """The cost of the step that ends, measured or as last measured.

        The call in which a step ends counts to the next one.
        """
        if self.on:
            self.step_ns = self._sum_ns
        self._sum_ns = 0
        self._steps += 1
        self.on = self._steps % METER_EVERY == 1
        return self.step_ns


class Failures:
    """Counts of contained failures by place, with the first message of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.meter = Meter()

    def note(self, where: str, error: BaseException) -> None:
        self.counts[where] = self.counts.get(where, 0) + 1
        if where not in self.first:
            self.first[where] = f"{type(error).__name__}: {error}"[:500]
            log.debug("probe %s failed", where, exc_info=error)

    def contained(self, where: str, probe: Callable[P, R]) -> Callable[P, R | None]:
        """`probe`, yielding None instead of raising."""

        @functools.wraps(probe)
        def safe(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return probe(*args, **kwargs)
            except Exception as error:
                self.note(where, error)
                return None

        return safe

    def seam(self, where: str, probe: Callable[P, R]) -> Callable[P, R | None]:
        """`probe` as the training calls it: contained, and its time metered."""
        meter = self.meter
        note = self.note

        @functools.wraps(probe)
        def safe(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                if meter.on:
                    return meter.timed(probe, *args, **kwargs)
                return probe(*args, **kwargs)
            except Exception as error:
                note(where, error)
                return None

        return safe
