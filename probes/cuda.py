"""The CUDA clock: stamps are timing events on the stream the training computes on.

No synchronize is ever added: events are read with `query()` once they have passed, and none
is recorded while a graph is being captured. Two events that the host records around an idle
stretch are apart by that stretch, and coincide while the stream is busy, so time in which
the GPU waits for the host lands on the phase the host was in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

MILLISECOND_NS = 1_000_000
# elapsed_time is a float32 of milliseconds: past this its resolution is worse than 1 µs.
REBASE_MS = 5_000.0


class EventStamp:
    """A recorded event and, once known, when it passed."""

    __slots__ = ("event", "ns")

    def __init__(self, event: Any, ns: int | None = None) -> None:
        self.event = event
        self.ns = ns


class Cuda(Protocol):
    """What the clock asks of torch.cuda; a fake in tests."""

    def new_event(self) -> Any: ...
    def capturing(self) -> bool: ...
    def current_stream(self) -> Any: ...
    def current_device(self) -> int: ...


class CudaClock:
    """Stamps from pooled CUDA events on the compute stream.

    Until the first backward it gives host stamps: the script must be the first to touch CUDA, or
    every rank would hold a context on device 0 before it can choose its own. The first event is
    given the host's time at which it was recorded; all others follow from it by the device's
    own elapsed times, so durations are the device's and only the absolute position carries the
    lag of that first event.
    """

    pools = True

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pool: list[Any] = []
        self._stream: Any = None
        self._last: EventStamp | None = None
        self._base: EventStamp | None = None
        self.device: int | None = None

    def arm(self) -> None:
        """Follow the stream that is current now: the one the training computes on."""
        self._stream = self._cuda.current_stream()
        if self.device is None:
            self.device = self._cuda.current_device()

    def now(self) -> EventStamp:
        if self._stream is None:
            return EventStamp(None, time.monotonic_ns())
        if self._last is not None and self._cuda.capturing():
            return self._last
        event = self._pool.pop() if self._pool else self._cuda.new_event()
        event.record(self._stream)
        stamp = EventStamp(event)
        if self._base is None:
            stamp.ns = time.monotonic_ns()
            self._base = stamp
        self._last = stamp
        return stamp

    def ready(self, stamp: EventStamp) -> bool:
        if stamp.ns is not None:
            return True
        # A query during capture would invalidate the user's graph.
        return not self._cuda.capturing() and bool(stamp.event.query())

    def resolve(self, stamp: EventStamp) -> int:
        if stamp.ns is None:
            assert self._base is not None
            assert self._base.ns is not None
            elapsed = self._base.event.elapsed_time(stamp.event)
            stamp.ns = self._base.ns + round(elapsed * MILLISECOND_NS)
            if elapsed > REBASE_MS:
                self._base = stamp
        return stamp.ns

    def resolve_marks(self, marks: Sequence[tuple[EventStamp, int]]) -> list[int]:
        """A mark taken on a side stream may lie before its predecessor; it then counts as no time."""
        return list(accumulate((self.resolve(stamp) for stamp, _ in marks), max))

    def recycle(self, stamps: Sequence[EventStamp]) -> None:
        """Events of resolved stamps go back to the pool, once each."""
        for stamp in stamps:
            if stamp is self._base or stamp is self._last or stamp.event is None:
                continue
            self._pool.append(stamp.event)
            stamp.event = None


class TorchCuda:
    """torch.cuda itself."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda

    def new_event(self) -> Any:
        return self._cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def capturing(self) -> bool:
        return self._cuda.is_current_stream_capturing()

    def current_stream(self) -> Any:
        return self._cuda.current_stream()

    def current_device(self) -> int:
        return self._cuda.current_device()


def cuda_clock() -> CudaClock:
    """The clock of the device the script will choose."""
    return CudaClock(TorchCuda())
