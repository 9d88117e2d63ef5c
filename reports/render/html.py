"""A Report as one self-contained HTML page: no script, no network, light and dark.

Everything that comes from a run is escaped by Jinja2; figures are escaped by their writer.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from diag.record.schema import PHASES
from diag.reports import figures
from diag.reports import format as f
from diag.reports.model import Estimate, Report
from diag.reports.render import tables
from diag.reports.render.text import (
    baseline_words,
    rate_words,
    run_words,
    steps_words,
)

_TEMPLATE = "report.html.j2"
_STYLE = "report.css"


def render_html(report: Report) -> str:
    """The page. Needs jinja2 and matplotlib, which are imported here."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(f=f, interval=_range, speedup2=_two_decimals)
    here = files("diag.reports.render")
    template = environment.from_string(here.joinpath(_TEMPLATE).read_text("utf-8"))
    drawn = {name: Markup(svg) if svg else None for name, svg in _figures(report).items()}
    style = Markup(here.joinpath(_STYLE).read_text("utf-8"))
    return template.render(report=report, style=style, figures=drawn, **_words(report)) + "\n"


def _finalize(value: Any) -> Any:
    """Control characters never reach the page; markup made here is left alone."""
    return f.printable(value) if type(value) is str else value  # Markup is a str as well


def _figures(report: Report) -> dict[str, str | None]:
    return {
        "waterfall": figures.waterfall(report),
        "phases": figures.phases(report),
        "steps": figures.step_times(report),
        "memory": figures.memory(report),
    }


def _words(report: Report) -> dict[str, Any]:
    """Everything the template shows that is not a field of the report."""
    return {
        "estimated": report.baseline.kind == "estimated",
        "run_words": run_words(report),
        "baseline_words": baseline_words(report),
        "steps_words": steps_words(report),
        "rate_words": rate_words(report),
        "terms": tables.known_terms(report),
        "unknown_terms": [t.term for t in report.terms if t.ms is None],
        "who": tables.who,
        "digits": f.decimals_for(report.step_measured_ms),
        "phases": PHASES,
        "typical": tables.typical_phases(report.per_rank) if report.per_rank else {},
        "wall_parts": _wall_parts(report),
        "spans": tables.span_rows(report) if report.spans else [],
        "pop": tables.pop_factors(report.pop),
        "command": _command(report.baseline_command),
    }


def _command(line: str | None) -> Any:
    """The command over several lines, escaped by hand: `_finalize` would join the lines."""
    from markupsafe import escape

    return escape("\n".join(f.command_lines(line or "", 88, indent="")))


def _range(estimate: Estimate, show: Any) -> str:
    """ "2.71x to 2.80x"; empty without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{show(estimate.low)} to {show(estimate.high)}"


def _wall_parts(report: Report) -> list[dict[str, Any]]:
    """What the bar and its key show: a colour stays with its part whichever parts there are."""
    return [
        {
            "label": label,
            "s": value,
            "waited": waited,
            "weight": f"{value:.2f}",
            "colour": tables.WALL_LABELS.index(label),
        }
        for label, value, waited in tables.wall_parts(report.wall)
    ]


def _two_decimals(value: float | None) -> str:
    return f.speedup(value, 2)
