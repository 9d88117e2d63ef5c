"""The waterfall: how the ideal speed-up becomes the measured one, term by term.

The rule: a term takes its share of the loss, `ms / (T - T*)`, times `ideal - measured`.
As the speed-up is `ideal * T* / T`, that equals `ideal * ms / T`: it needs no division by
the loss, so it also holds when nothing was lost, when terms are negative, and when the
speed-up is better than ideal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diag.reports import format as f
from diag.reports.model import Report, Term
from diag.reports.render.tables import known_terms

_LONGEST_LABEL = 44
_SMALLEST = 0.005  # of the step: smaller terms share one bar


@dataclass(frozen=True)
class Bar:
    """One row: a level standing on zero, or a term from `start` to `end`, in speed-up."""

    label: str
    start: float
    end: float
    value: str
    kind: Literal["level", "loss", "gain"]


def waterfall_bars(report: Report) -> list[Bar]:
    """Ideal, each term worth a bar, all the smaller ones, measured. Empty when unknown."""
    measured, value = report.step_measured_ms, report.speedup.value
    if measured is None or value is None or measured <= 0:
        return []
    ideal = report.speedup_ideal
    terms = known_terms(report)
    if not terms:
        return []
    large = [t for t in terms if abs(t.ms or 0.0) >= _SMALLEST * measured]
    small = [t for t in terms if t not in large]
    drops = [(_label(t), ideal * (t.ms or 0.0) / measured) for t in large]
    if small:
        drops.append((_small_label(small), ideal * sum(t.ms or 0.0 for t in small) / measured))
    bound = "at most, " if report.baseline.kind == "estimated" else ""
    bars = [Bar("ideal", 0.0, ideal, f.factor(ideal), "level")]
    level = ideal
    for label, drop in drops:
        bars.append(_drop(label, level, drop))
        level -= drop
    return [*bars, Bar("measured", 0.0, value, bound + f.speedup(value, 2), "level")]


def _drop(label: str, level: float, drop: float) -> Bar:
    text = f"{-drop:+.2f}x" if abs(drop) >= 0.005 else "0.00x"
    return Bar(label, level, level - drop, text, "loss" if drop >= 0 else "gain")


def _label(term: Term) -> str:
    if not term.ranks:
        return term.term
    phase = f", {f.printable(term.phase)}" if term.phase else ""
    return f.clip(f"{term.term}: {f.rank_names(term.ranks, most=3)}{phase}", _LONGEST_LABEL)


def _small_label(small: list[Term]) -> str:
    if len(small) > 3:
        return f"{len(small)} smaller terms"
    return ", ".join(term.term for term in small)
