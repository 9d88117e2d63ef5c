"""The timeline of one rank: marks that cut every instant into exactly one phase.

A mark is (stamp, phase that begins there). The phases of a step are the differences of
consecutive stamps, so they sum to the step exactly, by construction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from diag.record.schema import PHASES, Phase

# A host clock's stamp is nanoseconds; a CUDA clock's is an event, resolved later.
Stamp = Any
Mark = tuple[Stamp, int]

HOST = int(Phase.HOST)


class Clock(Protocol):
    """Where stamps come from. `HostClock` here; `CudaClock` in cuda.py; fakes in tests."""

    device: int | None  # the CUDA device, once it is known
    pools: bool  # whether stamps are worth taking back

    def arm(self) -> None:
        """A backward begins: the script has chosen its device and stream by now."""

    def now(self) -> Stamp:
        """The stamp of this instant on the device the training runs on."""

    def ready(self, stamp: Stamp) -> bool:
        """Whether `stamp` can be resolved without waiting for the device."""

    def resolve(self, stamp: Stamp) -> int:
        """Nanoseconds of a ready stamp."""

    def resolve_marks(self, marks: Sequence[Mark]) -> list[int]:
        """Nanoseconds of ready marks, never decreasing."""

    def recycle(self, stamps: Sequence[Stamp]) -> None:
        """Take back stamps nobody will resolve again."""


class HostClock:
    """CLOCK_MONOTONIC: on CPU the host clock is the device clock."""

    device: int | None = None
    pools = False
    now = staticmethod(time.monotonic_ns)

    def arm(self) -> None:
        return None

    def ready(self, stamp: Stamp) -> bool:
        return True

    def resolve(self, stamp: Stamp) -> int:
        return int(stamp)

    def resolve_marks(self, marks: Sequence[Mark]) -> list[int]:
        return [stamp for stamp, _ in marks]

    def recycle(self, stamps: Sequence[Stamp]) -> None:
        return None


class Timeline:
    """The marks since the last cut, and the stack of phases that are open now.

    Positions are absolute: they stay valid while marks before them are cut away.
    """

    # Nothing steps for this many marks only in a long evaluation, whose steps are
    # flagged and left out; past it marks stop until the next cut, so memory is bounded.
    MAX_MARKS = 50_000

    def __init__(self, clock: Clock) -> None:
        self.now = clock.now
        self.arm = clock.arm
        self.marks: list[Mark] = [(clock.now(), HOST)]
        self.stack: list[int] = [HOST]
        self.base = 0

    @property
    def phase(self) -> int:
        return self.stack[-1]

    @property
    def position(self) -> int:
        """The position of the last mark."""
        return self.base + len(self.marks) - 1

    def enter(self, phase: int) -> Stamp:
        stamp = self.now()
        self.stack.append(phase)
        if len(self.marks) < self.MAX_MARKS:
            self.marks.append((stamp, phase))
        return stamp

    def leave(self, depth: int, always: bool = False) -> Stamp:
        """Close every phase opened at or above `depth` (the stack's length before its enter).

        `always` marks also past MAX_MARKS: for ends that may become a cut.
        """
        del self.stack[max(depth, 1) :]
        stamp = self.now()
        if always or len(self.marks) < self.MAX_MARKS:
            self.marks.append((stamp, self.stack[-1]))
        return stamp

    def enter_at(self, stamp: Stamp, phase: int) -> None:
        """Say afterwards that `phase` ran since `stamp`, which lies after the last mark."""
        if len(self.marks) < self.MAX_MARKS:
            self.marks.append((stamp, phase))

    def cut(self, position: int) -> list[Mark]:
        """The marks up to and including `position`, which becomes the first of the rest."""
        count = position - self.base
        segment = self.marks[: count + 1]
        del self.marks[:count]
        self.base = position
        return segment


def phase_durations(stamps_ns: Sequence[int], phases: Sequence[int]) -> list[int]:
    """Nanoseconds per phase of a segment: len(PHASES) numbers summing to last - first.

    Args:
        stamps_ns: n+1 resolved stamps, non-decreasing.
        phases: the phase that begins at each of the first n (a last one is ignored).
    """
    totals = [0] * len(PHASES)
    previous = stamps_ns[0]
    for stamp, phase in zip(stamps_ns[1:], phases, strict=False):
        totals[phase] += stamp - previous
        previous = stamp
    return totals
