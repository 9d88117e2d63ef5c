"""Arrivals of DDP's buckets, from torch's flight recorder: no hook in the training's way.

The recorder notes each collective as it is issued from C++. Reading its ring holds the
interpreter for some 15 µs an entry, so it is read as the steps begin, when it is short and the
steps are warm-up; then seldom, within a budget, the step flagged as profiled; and once more when
the training is over. What the ring overwrote in between is counted.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

from diag.probes.tracker import Tracker
from diag.record.schema import StepFlag

BUDGET = 0.0005  # of the wall clock, reading and writing together
FIRST_SWEEP_STEP = 2
# A step in which it is read is left out of the accounting, so few must be.
EVERY_S, EVERY_STEPS = 60.0, 200
ITEM_BYTES = {
    "Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2,
    "Char": 1, "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16,
}  # fmt: skip


def entry_bytes(entry: dict[str, Any]) -> tuple[int, str]:
    """(bytes, dtype) of an entry's inputs."""
    kinds = entry.get("input_dtypes") or [""]
    sizes = entry.get("input_sizes") or []
    total = sum(
        prod(size) * ITEM_BYTES.get(kind, 0) for size, kind in zip(sizes, kinds, strict=False)
    )
    return total, str(kinds[0]).lower()


def new_entries(entries: Iterable[dict[str, Any]], last_id: int) -> Iterator[dict[str, Any]]:
    """Collectives noted after record `last_id`; point-to-point left out."""
    for entry in entries:
        if int(entry.get("record_id", -1)) > last_id and not entry.get("is_p2p"):
            yield entry


class FlightSweeper:
    """Reads the ring now and then and writes what is new as rows of source "flight"."""

    def __init__(
        self,
        tracker: Tracker,
        write: Callable[[tuple[object, ...]], None],
        dump: Callable[[], str | None],
    ) -> None:
        self.tracker = tracker
        self.write = write
        self.dump = dump
        self.cuts: deque[int] = deque(maxlen=8192)  # host time of each cut
        self.last_id = -1
        self.missed = 0
        self.swept = 0
        self._next_s = 0.0
        self._next_step = FIRST_SWEEP_STEP

    def note_cut(self) -> None:
        self.cuts.append(time.monotonic_ns())

    def sweep(self) -> None:
        """One sweep if it is due and DDP is at work; FSDP's collectives are seen as they leave."""
        if self.tracker.steps < self._next_step or time.monotonic() < self._next_s:
            return
        started = time.monotonic()
        self.tracker.flag(StepFlag.PROFILED)
        self.last_sweep()
        self.tracker.flag(StepFlag.PROFILED)
        ended = time.monotonic()
        self._next_s = max(self._next_s, ended + max((ended - started) / BUDGET, EVERY_S))
        self._next_step = self.tracker.steps + EVERY_STEPS

    def last_sweep(self) -> None:
        """Read what is new, due or not."""
        if not self.tracker.reducers:
            return
        text = self.dump()
        if text is None:
            self._next_s = float("inf")
            return
        self._write_new(json.loads(text).get("entries", []))

    def _write_new(self, entries: list[dict[str, Any]]) -> None:
        offset = time.time_ns() - time.monotonic_ns()
        cuts = list(self.cuts)
        first_step = self.tracker.steps - len(cuts) + 1
        for entry in new_entries(entries, self.last_id):
            record_id = int(entry["record_id"])
            if self.last_id >= 0 and record_id > self.last_id + 1:
                self.missed += record_id - self.last_id - 1
            self.last_id = record_id
            issued = int(entry["time_created_ns"]) - offset
            num_bytes, dtype = entry_bytes(entry)
            step = first_step + bisect_right(cuts, issued) - 1 if cuts else -1
            group = f"flight:{(entry.get('process_group') or ['?'])[0]}"
            op = str(entry.get("profiling_name", "")).rpartition(":")[2]
            seq = int(entry.get("collective_seq_id", -1))
            self.write(
                (step, group, seq, op, num_bytes, dtype, issued, None, None, "", "flight", None)
            )
            self.swept += 1
