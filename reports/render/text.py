"""A Report as plain text of at most 80 columns: the verdict, what to do, then the numbers."""

from __future__ import annotations

from typing import Literal

from diag.reports import format as f
from diag.reports.model import Estimate, Finding, Report
from diag.reports.render.layout import WIDTH, table, wrap
from diag.reports.render.tables import (
    fitting_term_rows,
    per_rank_rows,
    pop_factors,
    span_rows,
    wall_words,
)

_SGR = {"critical": "1;31", "warning": "1;33", "info": "1;36", "bold": "1", "dim": "2"}


def render_text(report: Report, *, colour: bool = False, width: int = WIDTH) -> str:
    """The whole report, ending in a newline. With `colour`, ANSI codes are added after layout."""
    sections = [
        _verdict(report, colour, width),
        _summary(report, width),
        _findings(report, colour, width),
        _terms(report, colour, width),
        _per_rank(report, colour, width),
        _spans(report, colour, width),
        _wall(report, colour, width),
        _pop(report, colour, width),
        _notes(report, colour, width),
        _baseline_command(report, colour, width),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _paint(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if colour else text


def _verdict(report: Report, colour: bool, width: int) -> list[str]:
    return [_paint(line, "bold", colour) for line in wrap(report.verdict, width)]


def interval_words(estimate: Estimate, show: Literal["ratio", "percent"]) -> str:
    """ "2.76x [2.71x, 2.80x]"; "unknown" without a value."""
    if estimate.value is None:
        return "unknown"
    value, low, high = (
        f.percent(x) if show == "percent" else f.speedup(x, 2)
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return value if estimate.low is None or estimate.high is None else f"{value} [{low}, {high}]"


def run_words(report: Report) -> str:
    run = report.run
    words = [
        f"{run.name}:",
        f"{f.plural(run.world_size, run.device.upper() + ' rank')} on {f.plural(run.nodes, 'node')},",
        f"{run.strategy} over {run.backend}, {run.mode} mode",
    ]
    if report.baseline.kind == "measured":
        words[-1] += f", {run.scaling} scaling" if run.scaling != "other" else ", batch changed"
    return " ".join(words)


def baseline_words(report: Report) -> str:
    baseline = report.baseline
    if report.run.steps_used == 0:
        return "none: this run has no steady step to compare"
    if baseline.name is None:
        return "none: what is ideal is estimated from this run, an upper bound"
    if baseline.kind == "estimated":
        return f"{baseline.name}: cannot be scaled without samples, so the ideal is estimated"
    runs = f", {baseline.runs} runs" if baseline.runs > 1 else ""
    return f"{baseline.name}: {f.plural(baseline.world_size, 'rank')}, measured{runs}"


def steps_words(report: Report) -> str:
    left_out = ", ".join(f"{n} {reason}" for reason, n in report.run.steps_excluded.items())
    if not (report.run.steps_used or left_out):
        return "none recorded"
    used = f"{report.run.steps_used} used"
    return f"{used}; left out: {left_out}" if left_out else used


def rate_words(report: Report) -> str:
    through = report.throughput
    if through.run is None and report.run.steps_used == 0:
        excluded = sum(report.run.steps_excluded.values())
        return "none: no step was recorded" if not excluded else "none: no step is steady"
    if through.run is None:
        return "unknown: see the warnings on how to count samples"
    text = f.rate(through.run, through.unit)
    return (
        text
        if through.baseline is None
        else f"{text} ({f.rate(through.baseline, through.unit)} before)"
    )


def _summary(report: Report, width: int) -> list[str]:
    bound = "at most " if report.baseline.kind == "estimated" else ""
    known = report.speedup.value is not None
    of = f" of {f.factor(report.speedup_ideal)} ideal" if known else ""
    facts = [
        ("run", run_words(report)),
        ("baseline", baseline_words(report)),
        ("speed-up", (bound if known else "") + interval_words(report.speedup, "ratio") + of),
        ("efficiency", (bound if known else "") + interval_words(report.efficiency, "percent")),
        ("throughput", rate_words(report)),
        ("steps", steps_words(report)),
    ]
    return [line for key, text in facts for line in wrap(text, width, f"  {key:<12}")]


def _findings(report: Report, colour: bool, width: int) -> list[str]:
    if not report.findings:
        return []
    lines = [_heading("Findings, worst first", colour)]
    for number, finding in enumerate(report.findings):
        lines += (
            ["", *_finding(finding, colour, width)] if number else _finding(finding, colour, width)
        )
    return lines


def _finding(finding: Finding, colour: bool, width: int) -> list[str]:
    head = wrap(f"{finding.severity} {finding.code}: {finding.title}", width, "  ", "    ")
    head[0] = head[0].replace(
        finding.severity, _paint(finding.severity, finding.severity, colour), 1
    )
    lines = list(head)
    for sentence in finding.evidence:
        lines += wrap(sentence, width, "    - ")
    if finding.location is not None:
        lines += wrap(f"at {finding.location.file}:{finding.location.line}", width, "    ")
    lines += wrap(finding.hint, width, "    > ")
    saves = (
        f"would save {f.ms(finding.would_save_ms)} a step; "
        if finding.would_save_ms is not None
        else ""
    )
    return [*lines, *wrap(f"{saves}see {finding.docs}", width, "    ")]


def _heading(text: str, colour: bool) -> str:
    return _paint(text, "bold", colour)


def _terms(report: Report, colour: bool, width: int) -> list[str]:
    rows = fitting_term_rows(report, width)
    if not rows:
        return []
    kind = report.interval_kind
    title = f"Where each step's time goes, ms ({f.percent(report.interval_level)} {kind} intervals)"
    unknown = [t.term for t in report.terms if t.ms is None]
    legend = "saves: ms a step if this one cause were cured; cures overlap and do not add up"
    lines = [_heading(title, colour), *table(rows, "<>>>>><", width)]
    if unknown:
        lines += wrap(f"unknown without a baseline: {', '.join(unknown)}", width, "  ")
    return lines + [_paint(line, "dim", colour) for line in wrap(legend, width, "  ")]


def _per_rank(report: Report, colour: bool, width: int) -> list[str]:
    if not report.per_rank:
        return []
    rows, note = per_rank_rows(report, width)
    lines = [_heading("Ranks, ms of each step", colour)]
    lines += table(rows, "<" + ">" * (len(rows[0]) - 1), width)
    return lines + wrap(note, width, "  ")


def _spans(report: Report, colour: bool, width: int) -> list[str]:
    if not report.spans:
        return []
    lines = [_heading("Your spans, ms of each step", colour)]
    return lines + table(span_rows(report), "<>>>>", width)


def _wall(report: Report, colour: bool, width: int) -> list[str]:
    wall = report.wall
    words = wall_words(wall)
    if not words or wall.total_s is None:
        return []
    lines = [_heading(f"Wall clock, {f.seconds(wall.total_s)}", colour), *wrap(words, width, "  ")]
    if wall.end_to_end_speedup is not None:
        text = (
            f"end to end, startup and all: {f.speedup(wall.end_to_end_speedup, 2)} against the "
            "baseline doing the same work"
        )
        lines += wrap(text, width, "  ")
    return lines


def _pop(report: Report, colour: bool, width: int) -> list[str]:
    factors = [
        f"{name} {'?' if value is None else f.percent(value)}"
        for name, value in pop_factors(report.pop)
    ]
    if not factors:
        return []
    text = f"{' x '.join(factors[:-1])} = {factors[-1]}"
    return [_heading("Efficiency as a product (POP)", colour), *wrap(text, width, "  ")]


def _notes(report: Report, colour: bool, width: int) -> list[str]:
    lines = []
    for warning in report.warnings:
        lines += wrap(f"warning: {warning}", width, "  ", "    ")
    for loss in report.lost:
        lines += wrap(f"lost: {loss}", width, "  ", "    ")
    overhead = report.probe_overhead
    if overhead.share is not None:
        text = f"probes: {f.small_percent(overhead.share)} of the step ({overhead.method})"
        lines += wrap(text, width, "  ", "    ")
    return [_heading("Notes", colour), *lines] if lines else []


def _baseline_command(report: Report, colour: bool, width: int) -> list[str]:
    if report.baseline_command is None:
        return []
    command = f.command_lines(report.baseline_command, width)
    return [_heading("To measure a baseline", colour), *command]
