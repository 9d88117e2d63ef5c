"""A Report as short Markdown, to paste into an issue or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from diag.reports import format as f
from diag.reports.model import Finding, Report
from diag.reports.render.tables import term_rows
from diag.reports.render.text import baseline_words, interval_words, run_words, steps_words

# What CommonMark or a table cell acts upon within a line; the source stays readable.
_ACTIVE = re.compile(r"([\\`*_\[|~<&$])")


def escape(text: str) -> str:
    """User-made text that Markdown shows as it is, on one line."""
    return _ACTIVE.sub(r"\\\1", f.printable(text))


def render_md(report: Report) -> str:
    """The verdict, the findings and the terms; the rest is in the HTML and the JSON."""
    sections = [
        [f"**{escape(report.verdict)}**"],
        _summary(report),
        [line for finding in report.findings for line in _finding(finding)],
        _terms(report),
        [f"- warning: {escape(text)}" for text in report.warnings]
        + [f"- lost: {escape(text)}" for text in report.lost],
        [f"<sub>diag {escape(report.diag_version)}</sub>"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _summary(report: Report) -> list[str]:
    estimated = report.baseline.kind == "estimated" and report.speedup.value is not None
    bound = "at most " if estimated else ""
    facts = [
        ("run", run_words(report)),
        ("baseline", baseline_words(report)),
        (
            "speed-up",
            f"{bound}{interval_words(report.speedup, 'ratio')} of {f.factor(report.speedup_ideal)}",
        ),
        ("steps", steps_words(report)),
    ]
    return [f"- {key}: {escape(text)}" for key, text in facts]


def _finding(finding: Finding) -> list[str]:
    saves = finding.would_save_ms
    gain = f" Would save {f.ms(saves)} a step." if saves is not None else ""
    return [
        f"- **{finding.severity}** `{finding.code}`: {escape(finding.title)}",
        *(f"  - {escape(sentence)}" for sentence in finding.evidence),
        f"  - What to do: {escape(finding.hint)}{gain}",
    ]


def _terms(report: Report) -> list[str]:
    rows = term_rows(report)
    if not rows:
        return []
    header = ["term", *rows[0][1:-1], "what"]
    return [_cells(header), _cells(["---", *["---:"] * 5, "---"]), *map(_escaped, rows[1:])]


def _escaped(row: Sequence[str]) -> str:
    return _cells([escape(cell) for cell in row])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
