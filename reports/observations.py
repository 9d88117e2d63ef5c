"""What the ranks observed beside their steps: milestones, events, memory; as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diag.record.columns import column
from diag.record.reader import RankRecord, Run
from diag.reports.model import MemorySeries

_SERIES_POINTS = 400
_ANCHORS = 31  # a long run has one at every flush


@dataclass(frozen=True)
class RankTimes:
    """A rank's milestones, CLOCK_MONOTONIC ns of its own node; None where not recorded.

    `to_realtime_ns` added to them gives Unix time, to compare nodes by.
    """

    rank: int
    start_ns: int | None
    ready_ns: int | None
    first_step_ns: int | None
    last_step_ns: int | None
    end_ns: int | None
    to_realtime_ns: int | None


@dataclass(frozen=True)
class Event:
    """One row of a rank's events."""

    rank: int
    kind: str
    time_ns: int
    duration_ns: int
    step: int | None
    detail: Mapping[str, Any]


def load_times(run: Run) -> tuple[RankTimes, ...]:
    """Every rank's milestones, from rank.json and, where it lacks them, from its rows."""
    return tuple(_times(record) for record in run.ranks.values())


def load_events(run: Run, *kinds: str) -> tuple[Event, ...]:
    """The events of the given kinds, rank by rank, in recorded order."""
    return tuple(e for record in run.ranks.values() for e in _events(record, kinds))


def peak_memory(run: Run) -> dict[int, int]:
    """Peak bytes per rank (device memory on CUDA, resident on CPU); ranks without are absent."""
    peaks = {}
    for rank, record in run.ranks.items():
        values = [_maximum(record.gauges[c]) for c in ("peak_bytes", _memory_column(record))]
        if found := [v for v in values if v is not None]:
            peaks[rank] = max(found)
    return peaks


def memory_series(run: Run) -> tuple[MemorySeries, ...]:
    """Memory over the seconds since the rank's start, thinned to some hundred points a rank."""
    series = (_memory(record) for record in run.ranks.values())
    return tuple(s for s in series if s.seconds)


def _times(record: RankRecord) -> RankTimes:
    facts, steps = record.facts, record.steps
    # rank.json is written at start, at the first step and at the end: after a kill the rows
    # know more than it does.
    first = _fact(facts, "first_step_ns") or (steps["start_ns"][0].as_py() if len(steps) else None)
    last = _fact(facts, "last_step_ns") or (steps["end_ns"][-1].as_py() if len(steps) else None)
    return RankTimes(
        rank=record.rank,
        start_ns=_fact(facts, "start_ns"),
        ready_ns=_fact(facts, "ready_ns"),
        first_step_ns=first,
        last_step_ns=last,
        end_ns=_fact(facts, "end_ns"),
        to_realtime_ns=_to_realtime(record),
    )


def _fact(facts: Mapping[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) else None


def _to_realtime(record: RankRecord) -> int | None:
    """The middle one of some anchors' offsets: the wall clock may be set while the run goes on."""
    anchors = _of_kinds(record.events, ("anchor",))
    some = np.unique(np.linspace(0, max(len(anchors) - 1, 0), _ANCHORS).astype(int))
    details = map(_object, anchors["detail"].take(some).to_pylist() if len(anchors) else ())
    offsets = [
        detail["realtime_ns"] - detail["monotonic_ns"]
        for detail in details
        if {"realtime_ns", "monotonic_ns"} <= detail.keys()
    ]
    return sorted(offsets)[len(offsets) // 2] if offsets else None


def _of_kinds(events: pa.Table, kinds: tuple[str, ...]) -> pa.Table:
    return events.filter(pc.is_in(events["kind"].cast(pa.string()), column(kinds, pa.string())))


def _events(record: RankRecord, kinds: tuple[str, ...]) -> list[Event]:
    return [
        Event(
            record.rank,
            row["kind"],
            row["time_ns"] or 0,
            row["duration_ns"] or 0,
            row["step"],
            _object(row["detail"]),
        )
        for row in _of_kinds(record.events, kinds).to_pylist()
    ]


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _memory_column(record: RankRecord) -> str:
    # On the CPU torch's allocator counts nothing.
    return "rss_bytes" if not _maximum(record.gauges["allocated_bytes"]) else "allocated_bytes"


def _maximum(column: pa.ChunkedArray) -> int | None:
    values = column.drop_null()
    return int(values.to_numpy().max()) if len(values) else None


def _memory(record: RankRecord) -> MemorySeries:
    table = record.gauges.select(["time_ns", _memory_column(record)]).drop_null()
    time, size = (np.asarray(table[i].to_numpy(), np.int64) for i in range(2))
    if not len(time):
        return MemorySeries(record.rank, (), ())
    start = _fact(record.facts, "start_ns") or int(time[0])
    # The largest of each stretch: a peak must not be thinned away.
    edges = np.unique(np.linspace(0, len(time), min(len(time), _SERIES_POINTS) + 1).astype(int))
    peak = np.maximum.reduceat(size, edges[:-1])
    seconds = (time[edges[:-1]] - start) / 1e9
    return MemorySeries(record.rank, tuple(seconds.tolist()), tuple(peak.tolist()))
