"""The parts of a step the user named with `diag.span`: their time per used step, rank by rank."""

from __future__ import annotations

from diag.reports.findings.case import NS_PER_MS
from diag.reports.loaded import Loaded
from diag.reports.model import SpanRow
from diag.reports.observations import load_events


def span_rows(loaded: Loaded, base: Loaded | None) -> tuple[SpanRow, ...]:
    """One row per name, in order of first appearance; the baseline's beside it."""
    mine, theirs = _per_rank(loaded), _per_rank(base) if base is not None else {}
    return tuple(
        SpanRow(name, per_rank, _mean(theirs[name]) if name in theirs else None)
        for name, per_rank in mine.items()
    )


def _per_rank(loaded: Loaded) -> dict[str, dict[int, float]]:
    """ms per used step by name and rank; a rank that never had the span has 0."""
    used = set(loaded.panel.index[loaded.used].tolist())
    sums: dict[str, dict[int, float]] = {}
    for event in load_events(loaded.run, "span") if used else ():
        name = str(event.detail.get("name", "?"))
        if event.step in used:
            row = sums.setdefault(name, dict.fromkeys(loaded.panel.ranks, 0.0))
            row[event.rank] = row.get(event.rank, 0.0) + event.duration_ns / NS_PER_MS / len(used)
    return sums


def _mean(per_rank: dict[int, float]) -> float:
    return sum(per_rank.values()) / len(per_rank)
