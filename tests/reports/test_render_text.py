"""The text report: golden at 80 columns, and properties that hold for every report."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from diag.reports.format import display_width
from diag.reports.model import Report
from diag.reports.render.layout import table, wrap
from diag.reports.render.md import render_md
from diag.reports.render.text import render_text
from helpers import literal_reports
from helpers.golden import assert_golden

REPORTS = {
    "straggler": literal_reports.straggler_report(),
    "clean": literal_reports.clean_report(),
    "estimated": literal_reports.estimated_report(),
    "superlinear": literal_reports.superlinear_report(),
    "unknown": literal_reports.unknown_report(),
    "hostile": literal_reports.hostile_report(),
    "many_ranks": literal_reports.many_ranks_report(),
}
reports = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())


@pytest.mark.parametrize("name", REPORTS)
def test_text_is_as_agreed(name: str) -> None:
    assert_golden(f"{name}.txt", render_text(REPORTS[name]))


@pytest.mark.parametrize("name", ["straggler", "estimated", "unknown", "hostile"])
def test_markdown_is_as_agreed(name: str) -> None:
    assert_golden(f"{name}.md", render_md(REPORTS[name]))


@reports
def test_no_line_passes_80_columns(report: Report) -> None:
    if report.run.name == literal_reports.HOSTILE:  # its command is one word of 86 columns
        report = replace(report, baseline_command=None)
    assert max(display_width(line) for line in render_text(report).splitlines()) <= 80


@reports
def test_sentences_fit_a_narrower_terminal(report: Report) -> None:
    text = render_text(replace(report, terms=(), per_rank=(), baseline_command=None), width=50)
    assert max(display_width(line) for line in text.splitlines()) <= 50


@reports
def test_it_leads_with_the_verdict(report: Report) -> None:
    text = " ".join(render_text(report).split())
    assert text.startswith(" ".join(wrap(report.verdict, 10_000)))


@reports
def test_nothing_a_terminal_obeys_is_printed(report: Report) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", render_text(report))


@reports
def test_colour_changes_no_character(report: Report) -> None:
    coloured = render_text(report, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render_text(report)
    assert "\x1b[" in coloured


def test_the_terms_shown_add_up_to_the_step() -> None:
    text = render_text(literal_reports.straggler_report())
    rows = re.findall(r"^  (?:ideal step|\+ \w+) +(-?[\d.]+)", text, re.MULTILINE)
    (measured,) = re.findall(r"^  = measured step +([\d.]+)", text, re.MULTILINE)
    assert len(rows) == 11
    assert sum(map(float, rows)) == pytest.approx(float(measured), abs=0.05 * len(rows))


def test_many_ranks_show_the_slow_ones_and_say_what_is_hidden() -> None:
    text = render_text(literal_reports.many_ranks_report())
    shown = re.findall(r"^  (\d+) ", text.split("Ranks, ms")[1], re.MULTILINE)
    assert {"17", "40", "2"} <= set(shown)
    assert f"{64 - len(shown) + 1} more ranks" in text


def test_wrap_keeps_a_number_with_its_unit() -> None:
    assert wrap("it takes 18.2 ms", 15) == ["it takes", "18.2 ms"]


def test_wrap_cuts_a_word_longer_than_a_line() -> None:
    assert wrap("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_table_clips_only_its_last_column() -> None:
    assert table([["a", "long tail"], ["bb", "x"]], "<<", width=12) == ["  a   lon...", "  bb  x"]
