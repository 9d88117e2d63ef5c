"""Fakes at the probes' seams: a clock that is moved by hand, a sink that keeps rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diag.probes.contain import Failures
from diag.probes.ledger import Ledger
from diag.probes.timeline import Timeline
from diag.probes.tracker import Tracker
from diag.probes.traffic import Traffic
from diag.record.schema import COLLECTIVES, STEPS


class FakeClock:
    """Time in ns that passes only when told to."""

    def __init__(self) -> None:
        self.time = 1_000

    device = None
    pools = False

    def arm(self) -> None:
        return None

    def now(self) -> int:
        return self.time

    def ready(self, stamp: int) -> bool:
        return True

    def resolve(self, stamp: int) -> int:
        return stamp

    def resolve_marks(self, marks: Sequence[tuple[int, int]]) -> list[int]:
        return [stamp for stamp, _ in marks]

    def recycle(self, stamps: Sequence[int]) -> None:
        return None


class Rows:
    """A sink; `steps` and `collectives` as dictionaries by column."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.collectives: list[dict[str, Any]] = []
        self.events: list[tuple[object, ...]] = []

    def append_step(self, row: tuple[object, ...]) -> None:
        self.steps.append(dict(zip(STEPS.names, row, strict=True)))

    def append_collective(self, row: tuple[object, ...]) -> None:
        self.collectives.append(dict(zip(COLLECTIVES.names, row, strict=True)))

    def append_event(self, row: tuple[object, ...]) -> None:
        self.events.append(row)


class FakeGroup:
    group_name = "0"

    def __init__(self, size: int = 2) -> None:
        self._size = size

    def size(self) -> int:
        return self._size


class FakeDdp:
    """What the tracker reads of a DDP."""

    def __init__(self, size: int = 2) -> None:
        self.process_group = FakeGroup(size)
        self.require_forward_param_sync = True
        self.find_unused_parameters = False

    def parameters(self) -> list[Any]:
        return []


class Optimizer:
    """Something weakly referable that steps."""


class Rank:
    """A tracker over fakes, and a script's actions in ns."""

    def __init__(self, world: int = 2) -> None:
        self.clock = FakeClock()
        self.rows = Rows()
        self.failures = Failures()
        traffic = Traffic(0, lambda group: list(range(group.size())))
        ledger = Ledger(self.clock, self.rows)
        self.tracker = Tracker(Timeline(self.clock), traffic, ledger, self.failures, world)
        self.optimizer = Optimizer()
        self.ddp = FakeDdp(world)

    def wrapped(self) -> Rank:
        self.tracker.reducers.built(self.ddp)
        return self

    def idle(self, ns: int) -> None:
        self.clock.time += ns

    def during(self, phase: int, ns: int) -> None:
        depth = self.tracker.begin(phase)
        assert depth is not None
        self.idle(ns)
        self.tracker.end(depth)

    def forward(self, ns: int) -> None:
        depth = self.tracker.begin_forward()
        assert depth is not None
        self.idle(ns)
        self.tracker.end(depth)

    def backward(self, ns: int, exposed: int | None = None) -> None:
        """A backward of `ns`; then, under DDP, `exposed` ns blocked on the others."""
        depth = self.tracker.begin_backward()
        assert depth is not None
        self.idle(ns)
        if exposed is not None:
            self.tracker.local_backward_ended()
            self.idle(exposed)
        self.tracker.end_backward(depth)

    def wait(self, ns: int, op: str = "allreduce") -> None:
        """A blocking collective on the world."""
        issued = self.tracker.issue(FakeGroup(self.tracker.world), op, ())
        waiting = self.tracker.begin_wait()
        self.idle(ns)
        if waiting is not None:
            self.tracker.end_wait(waiting, "python", issued)

    def step(self, ns: int, optimizer: Optimizer | None = None) -> None:
        depth = self.tracker.begin_step(optimizer or self.optimizer)
        assert depth is not None
        self.idle(ns)
        self.tracker.end(depth)

    def phases(self, index: int = -1) -> dict[str, int]:
        """The nonzero phases of a written step."""
        row = self.rows.steps[index]
        names = [
            n for n in row if n.endswith("_ns") and n not in ("start_ns", "end_ns", "probe_ns")
        ]
        return {n.removesuffix("_ns"): row[n] for n in names if row[n]}
