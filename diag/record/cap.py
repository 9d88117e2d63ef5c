"""The size limit of a rank's record, and what gives way as it nears.

Past three quarters of the limit collectives are summed per step; at the limit nothing more is
recorded. Each change is an event of kind "rollup", so that a reader can say from which step on.
"""

from __future__ import annotations

import json
import time
from typing import Any

from diag.record.rollup import roll_up

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]


class Cap:
    """Decides, flush by flush, what of the waiting rows is kept.

    Attributes:
        rolled_up_from: first step with summed collectives, or None.
        stopped_from: first step that is not recorded, or None.
        dropped: rows dropped because the limit was reached.
    """

    def __init__(self, max_bytes: int) -> None:
        self.rolled_up_from: int | None = None
        self.stopped_from: int | None = None
        self.dropped = 0
        self._max_bytes = max_bytes
        self._next_step = 0

    def apply(self, size: int, taken: Rows) -> Rows:
        """What to write of `taken`, with `size` bytes already written."""
        first, steps = self._next_step, taken["steps"]
        if steps:
            self._next_step = steps[-1][0] + 1
        if self.stopped_from is not None or size >= self._max_bytes:
            return self._stop(first, taken)
        if self.rolled_up_from is not None or size >= self._max_bytes * 3 // 4:
            return self._sum(first, taken)
        return taken

    def _stop(self, step: int, taken: Rows) -> Rows:
        events: list[Row] = []
        if self.stopped_from is None:
            self.stopped_from = step
            events = [self._event("stopped", step)]
        self.dropped += sum(map(len, taken.values()))
        return {name: events if name == "events" else [] for name in taken}

    def _sum(self, step: int, taken: Rows) -> Rows:
        events = taken["events"]
        if self.rolled_up_from is None:
            self.rolled_up_from = step
            events = [*events, self._event("summed", step)]
        return {**taken, "collectives": roll_up(taken["collectives"]), "events": events}

    def _event(self, what: str, step: int) -> Row:
        detail = {"what": what, "from_step": step, "max_bytes": self._max_bytes}
        return (time.monotonic_ns(), 0, step, "rollup", json.dumps(detail))
