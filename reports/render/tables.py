"""The report's tables as rows of cells: what every textual renderer shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports import format as f
from diag.reports.model import Pop, RankRow, Report, Term, TermName, Wall
from diag.reports.render.layout import table_width

_SHORT = {"exposed_comm": "comm", "optimizer": "optim."}
_MOST_RANKS = 8  # more than this, and only the slowest and the accused are shown
_SLOWEST_SHOWN = 4
_SPAN_NAME = 32  # characters shown of a span's name
_SHORTEST_S = 0.05  # parts below are not shown
# What a term's row says in its last column: what it means; only ranks and phase; only ranks.
Said = Literal["all", "blamed", "ranks"]
GLOSS: dict[TermName, str] = {
    "compute": "forward + backward",
    "optimizer": "optimizer step",
    "data": "waiting for loaders",
    "copy": "host to device",
    "host": "all other host time",
    "straggler": "within chance",
    "jitter": "rotating late rank",
    "serialization": "waits inside a step",
    "transfer": "communication",
    "residual": "not explained",
}
_WALL_PARTS = (
    ("startup", "startup_s", None),
    ("warm-up", "warm_up_s", None),
    ("steady", "steady_s", None),
    ("checkpoints", "checkpoint_s", "checkpoint_waited_s"),
    ("evaluation", "evaluation_s", "evaluation_waited_s"),
    ("shutdown", "shutdown_s", None),
    ("other", "other_s", None),
)
WALL_LABELS = tuple(label for label, _, _ in _WALL_PARTS)


def known_terms(report: Report) -> list[Term]:
    """The terms with a value, largest loss first, the residual last."""
    known = [t for t in report.terms if t.ms is not None]
    return sorted(known, key=lambda t: (t.term == "residual", -(t.ms or 0.0)))


def who(term: Term, said: Said = "all") -> str:
    """ "rank 2, backward"; what the term means where nobody is to blame."""
    if not term.ranks:
        return GLOSS[term.term] if said == "all" else ""
    phase = [term.phase] if term.phase and said != "ranks" else []
    return ", ".join([f.rank_names(term.ranks, most=3), *phase])


def fitting_term_rows(report: Report, width: int) -> list[list[str]]:
    """`term_rows` that say as much as fits."""
    levels: tuple[Said, ...] = ("all", "blamed", "ranks")
    choices = [term_rows(report, said) for said in levels]
    return next((rows for rows in choices if rows and table_width(rows) <= width), choices[-1])


def term_rows(report: Report, said: Said = "all") -> list[list[str]]:
    """Header, the ideal step, every known term, the measured step. Empty when nothing is known."""
    measured, ideal = report.step_measured_ms, report.step_ideal_ms
    terms = known_terms(report)
    if measured is None or ideal is None or not terms:
        return []
    digits = f.decimals_for(measured)
    estimated = report.baseline.kind == "estimated"
    first = ["ideal step", f.fixed(ideal, digits), *[""] * 4, "typical rank" if estimated else ""]
    reached = f.speedup(report.speedup.value, 2)
    return [
        ["", "ms", "interval", "share", "saves", "then", ""],
        first,
        *(_term_row(term, digits, said) for term in terms),
        ["= measured step", f.fixed(measured, digits), *[""] * 3, reached, ""],
    ]


def _term_row(term: Term, digits: int, said: Said) -> list[str]:
    known = term.low is not None and term.high is not None
    return [
        f"+ {term.term}",
        f.fixed(term.ms, digits),
        f"[{f.fixed(term.low, digits)}, {f.fixed(term.high, digits)}]" if known else "",
        f.percent(term.share),
        "" if term.would_save_ms is None else f.fixed(term.would_save_ms, digits),
        "" if term.speedup_without is None else f.speedup(term.speedup_without, 2),
        who(term, said),
    ]


def self_ms(row: RankRow) -> float:
    """What the rank's own work took: the step minus the time blocked on others."""
    return sum(row.phases_ms.get(phase, 0.0) for phase in LOCAL_PHASES)


def lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def typical_phases(rows: Sequence[RankRow]) -> dict[str, float]:
    """The typical rank, phase by phase: the lower median over the ranks."""
    return {p: lower_median([row.phases_ms.get(p, 0.0) for row in rows]) for p in PHASES}


def ranks_worth_showing(report: Report) -> list[RankRow]:
    """All ranks when they are few; else the slowest and those a finding names, by number."""
    if len(report.per_rank) <= _MOST_RANKS:
        return list(report.per_rank)
    accused = [rank for finding in report.findings for rank in finding.ranks][:_MOST_RANKS]
    slowest = sorted(report.per_rank, key=self_ms, reverse=True)[:_SLOWEST_SHOWN]
    wanted = {row.rank for row in slowest} | set(accused)
    return [row for row in report.per_rank if row.rank in wanted]


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[RankRow], str]
    typical: str
    droppable: bool = False


def _phase_columns(report: Report, digits: int) -> list[_Column]:
    typical = typical_phases(report.per_rank)

    def column(phase: str) -> _Column:
        return _Column(
            _SHORT.get(phase, phase),
            lambda row: f.fixed(row.phases_ms.get(phase), digits),
            f.fixed(typical[phase], digits),
            # A phase that is nothing everywhere is the first to go when room is short.
            droppable=not any(row.phases_ms.get(phase, 0.0) > 0.05 for row in report.per_rank),
        )

    return [column(phase) for phase in PHASES]


def _rank_columns(report: Report) -> list[_Column]:
    digits = f.decimals_for(report.step_measured_ms)
    unit = f"{report.throughput.unit}/s"
    columns = [_Column("rank", lambda row: str(row.rank), "typical")]
    if report.run.nodes > 1:
        columns.append(_Column("node", lambda row: str(row.node), "", droppable=True))
    columns += _phase_columns(report, digits)
    if any(row.samples_per_s is not None for row in report.per_rank):
        columns.append(
            _Column(
                unit,
                lambda row: (
                    f.UNKNOWN if row.samples_per_s is None else f.significant(row.samples_per_s)
                ),
                "",
                droppable=True,
            )
        )
    if any(row.peak_memory_bytes is not None for row in report.per_rank):
        columns.append(_Column("memory", lambda row: f.size(row.peak_memory_bytes), ""))
    return columns


def per_rank_rows(report: Report, width: int) -> tuple[list[list[str]], str]:
    """Header, one row per shown rank and the typical rank; and a sentence on what is not shown."""
    shown = ranks_worth_showing(report)
    columns = _rank_columns(report)
    rows = _cells(columns, shown)
    while table_width(rows) > width and any(c.droppable for c in columns):
        columns.remove(next(c for c in reversed(columns) if c.droppable))
        rows = _cells(columns, shown)
    hidden = len(report.per_rank) - len(shown)
    note = (
        f"{f.plural(hidden, 'more rank')} like the typical one; --json has them all."
        if hidden
        else ""
    )
    return rows, note


def _cells(columns: Sequence[_Column], rows: Sequence[RankRow]) -> list[list[str]]:
    table = [[c.title for c in columns], *([c.cell(row) for c in columns] for row in rows)]
    return [*table, [c.typical for c in columns]] if len(rows) > 2 else table


def span_rows(report: Report) -> list[list[str]]:
    """Header, and one row per span: its mean, the baseline's, the slowest rank's and which it is."""
    digits = f.decimals_for(report.step_measured_ms)
    rows = [
        [
            f.shortened(f.printable(span.name), _SPAN_NAME),
            f.fixed(span.mean_ms, digits),
            "" if span.baseline_ms is None else f.fixed(span.baseline_ms, digits),
            f.fixed(span.per_rank_ms[span.slowest], digits),
            str(span.slowest),
        ]
        for span in report.spans
    ]
    return [["span", "mean", "baseline", "slowest", "rank"], *rows]


def wall_parts(wall: Wall) -> list[tuple[str, float, float | None]]:
    """Label, seconds, what the other ranks waited meanwhile, for every part that took time."""
    parts = []
    for label, attribute, waited_attribute in _WALL_PARTS:
        value = getattr(wall, attribute)
        waited = getattr(wall, waited_attribute) if waited_attribute else None
        if value is not None and value >= _SHORTEST_S:
            parts.append((label, value, waited if waited and waited >= _SHORTEST_S else None))
    return parts


def wall_words(wall: Wall) -> str:
    """ "startup 6.2 s, checkpoints 1.9 s (other ranks waited 1.4 s)"."""
    return ", ".join(
        f"{label} {f.seconds(value)}"
        + (f" (other ranks waited {f.seconds(waited)})" if waited is not None else "")
        for label, value, waited in wall_parts(wall)
    )


def pop_factors(pop: Pop) -> list[tuple[str, float | None]]:
    """POP's factors, then their product. Empty when none is known."""
    factors = [
        ("computation", pop.computation),
        ("load balance", pop.load_balance),
        ("serialization", pop.serialization),
        ("transfer", pop.transfer),
        ("efficiency", pop.efficiency),
    ]
    return [] if all(value is None for _, value in factors) else factors
