"""From marks to rows: what a finished step leaves in the record.

On CPU a step is resolved by the recorder's thread, when it writes; on CUDA by the training's,
when the step's last event has passed, steps later: an event must not be asked from elsewhere
while a graph is captured.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from diag.probes.timeline import Clock, Mark, Stamp, phase_durations
from diag.probes.traffic import Blocked
from diag.record.schema import StepFlag


class Sink(Protocol):
    """Where rows go: a RankWriter, or lists in tests."""

    def append_step(self, row: tuple[object, ...], /) -> None: ...
    def append_collective(self, row: tuple[object, ...], /) -> None: ...


@dataclass(slots=True)
class Draft:
    """What the probes gather about the step under way."""

    samples: int | None = 0  # None: a batch came whose size cannot be trusted
    tokens: int | None = None
    micro_batches: int = 0
    probe_ns: int = 0
    flags: StepFlag = StepFlag.NONE
    stated: bool = False  # the user said how many samples; the loader is not asked


@dataclass(slots=True)
class _Step:
    index: int
    marks: list[Mark]
    rows: list[Blocked]
    draft: Draft


class Ledger:
    """Steps on their way into the record, in order.

    Args:
        deferred: leave the resolving to whoever calls `settle`, seconds later at most.
    """

    # A device this many steps behind the host is not merely late; its steps are given up.
    MAX_WAITING = 512
    MAX_DEFERRED = 20_000

    def __init__(self, clock: Clock, sink: Sink, deferred: bool = False) -> None:
        self.clock = clock
        self.sink = sink
        self.deferred = deferred
        self._most = self.MAX_DEFERRED if deferred else self.MAX_WAITING
        self._settling = threading.Lock()
        self.waiting: deque[_Step] = deque()
        self.written = 0
        self.given_up = 0

    def before_steps(self, rows: list[Blocked]) -> None:
        """Collectives before the first cut belong to no step."""
        self._write_rows(-1, rows)

    def add(self, index: int, marks: list[Mark], rows: list[Blocked], draft: Draft) -> None:
        self.waiting.append(_Step(index, marks, rows, draft))
        if not self.deferred:
            self.settle()
        if len(self.waiting) > self._most:
            self.waiting.popleft()
            self.given_up += 1

    def settle(self) -> None:
        """Write every step whose stamps can be resolved without waiting."""
        with self._settling:
            self._settle()

    def _settle(self) -> None:
        while self.waiting and self.clock.ready(self.waiting[0].marks[-1][0]):
            step = self.waiting.popleft()
            # First its collectives: a step in the record has them, whenever the rank is killed.
            try:
                self._write_rows(step.index, step.rows)
                self._write_step(step)
            except Exception:  # one step that cannot be resolved must not hold up all others
                self.given_up += 1
            if not self.clock.pools:
                continue
            # The last stamp begins the next step: it stays.
            self.clock.recycle([s for s, _ in step.marks[:-1]])
            self.clock.recycle([row.issued.issue for row in step.rows])

    def _write_step(self, step: _Step) -> None:
        stamps = self.clock.resolve_marks(step.marks)
        durations = phase_durations(stamps, [phase for _, phase in step.marks])
        draft = step.draft
        samples = draft.samples if draft.samples else None
        self.sink.append_step(
            (
                step.index,
                stamps[0],
                stamps[-1],
                *durations,
                samples,
                draft.tokens,
                draft.micro_batches,
                draft.probe_ns,
                int(draft.flags),
            )
        )
        self.written += 1

    def _write_rows(self, step: int, rows: list[Blocked]) -> None:
        for row in rows:
            issued = row.issued
            self.sink.append_collective(
                (
                    step,
                    issued.group,
                    issued.seq,
                    issued.op,
                    issued.num_bytes,
                    issued.dtype,
                    self._resolved(issued.issue),
                    self._resolved(row.wait),
                    self._resolved(row.end),
                    issued.site,
                    row.source,
                    issued.root,
                )
            )

    def _resolved(self, stamp: Stamp | None) -> int | None:
        if stamp is None or not self.clock.ready(stamp):
            return None
        return self.clock.resolve(stamp)
