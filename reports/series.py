"""A step series made small enough to draw, without hiding its peaks."""

from __future__ import annotations

from dataclasses import dataclass

from diag.reports.model import StepSeries

_MOST_POINTS = 1200


@dataclass(frozen=True)
class Reduced:
    """Steps in buckets: the first index, lowest and highest time of each, and its reason."""

    index: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    excluded: tuple[str | None, ...]


@dataclass(frozen=True)
class Span:
    """Steps left out in a row, for one reason."""

    first: int
    last: int
    reason: str


def reduced(series: StepSeries, most: int = _MOST_POINTS) -> Reduced:
    """At most about `most` buckets of neighbouring steps; used and excluded steps never mix."""
    size = -(-len(series.index) // most)
    buckets: list[list[int]] = []
    for i, reason in enumerate(series.excluded):
        same = buckets and len(buckets[-1]) < size and series.excluded[buckets[-1][0]] == reason
        if same:
            buckets[-1].append(i)
        else:
            buckets.append([i])
    return Reduced(
        tuple(series.index[b[0]] for b in buckets),
        tuple(min(series.ms[i] for i in b) for b in buckets),
        tuple(max(series.ms[i] for i in b) for b in buckets),
        tuple(series.excluded[b[0]] for b in buckets),
    )


def spans(kept: Reduced) -> list[Span]:
    """The excluded stretches, in order."""
    found: list[Span] = []
    for number, (index, reason) in enumerate(zip(kept.index, kept.excluded, strict=True)):
        if reason is None:
            continue
        last = kept.index[number + 1] - 1 if number + 1 < len(kept.index) else index
        if found and found[-1].last + 1 == index and found[-1].reason == reason:
            found[-1] = Span(found[-1].first, last, reason)
        else:
            found.append(Span(index, last, reason))
    return found
