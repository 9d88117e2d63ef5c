"""Rows of the record, as a probe would append them."""

from __future__ import annotations

from typing import Any

Row = tuple[Any, ...]
STEP_NS = 70


def step_row(index: int) -> Row:
    start = index * STEP_NS
    return (index, start, start + STEP_NS, *[10] * 7, 32, None, 1, 3, 0)


def collective_row(step: int, seq: int | None, /, **changes: Any) -> Row:
    row = {
        "step": step,
        "group": "ddp:0",
        "seq": seq,
        "op": "all_reduce",
        "bytes": 1024,
        "dtype": "float32",
        "issue_ns": step * STEP_NS + 50,
        "wait_ns": step * STEP_NS + 60,
        "end_ns": (step + 1) * STEP_NS,
        "site": f"bucket {(seq or 0) % 3}",
        "source": "ddp",
        "root": None,
    }
    return tuple((row | changes).values())


def gauge_row(time_ns: int, rss_bytes: int = 2**20) -> Row:
    return (time_ns, 0, 0, rss_bytes, rss_bytes, None, None, None, None, None, 5, 6)


def event_row(time_ns: int, kind: str = "gc", detail: str = "{}") -> Row:
    return (time_ns, 1, 0, kind, detail)
