"""The HTML page: self-contained, escaped, deterministic, its bars add up."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from diag.reports import figures
from diag.reports.model import StepSeries
from diag.reports.render.html import render_html
from diag.reports.series import Span, reduced, spans
from diag.reports.waterfall import waterfall_bars
from helpers import literal_reports
from helpers.golden import assert_golden

REPORTS = {
    "straggler": literal_reports.straggler_report(),
    "clean": literal_reports.clean_report(),
    "estimated": literal_reports.estimated_report(),
    "superlinear": literal_reports.superlinear_report(),
    "unknown": literal_reports.unknown_report(),
    "hostile": literal_reports.hostile_report(),
}
PAGES = {name: cache(partial(render_html, report)) for name, report in REPORTS.items()}
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Skeleton(HTMLParser):
    """Tags and words of a page, indented, without what is drawn or styled."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if "svg" not in self.open and tag != "svg":
            css = dict(attrs).get("class")
            self._add(f"<{tag}{f' .{css}' if css else ''}>")
        elif tag == "svg":
            self._add(f"<svg {dict(attrs)['aria-label']}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open and "svg" not in self.open:
            self._add(" ".join(data.split()))

    def _add(self, text: str) -> None:
        self.lines.append(" " * len(self.open) + text)


def parsed(name: str) -> Skeleton:
    skeleton = Skeleton()
    skeleton.feed(PAGES[name]())
    assert skeleton.open == []
    return skeleton


@pytest.mark.parametrize("name", ["straggler", "estimated", "unknown"])
def test_the_page_is_built_as_agreed(name: str) -> None:
    assert_golden(f"{name}.html.txt", "\n".join(parsed(name).lines) + "\n")


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_loaded_and_nothing_runs(name: str) -> None:
    tags = parsed(name).tags
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {t for t, _ in tags}
    for tag, attributes in tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith("#"), (tag, attributes)
    html = PAGES[name]()
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_what_a_user_named_is_shown_as_text_everywhere() -> None:
    html = PAGES["hostile"]()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "{{7*7}}" in html
    assert "49" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).split("</style>")[1]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", html)


def test_a_phase_or_rank_label_cannot_break_out_of_a_figure() -> None:
    hostile = literal_reports.HOSTILE
    base = literal_reports.straggler_report()
    slow = next(t for t in base.terms if t.term == "straggler")
    terms = tuple(replace(t, phase=hostile) if t is slow else t for t in base.terms)
    svg = figures.waterfall(replace(base, terms=terms))
    assert svg is not None
    assert "<script" not in svg
    assert "\x1b" not in svg
    ElementTree.fromstring(svg)


def test_dollars_in_a_figure_are_text_not_a_formula() -> None:
    base = literal_reports.straggler_report()
    terms = tuple(replace(t, phase=r"$\frac{1}{0}$") if t.ranks else t for t in base.terms)
    svg = figures.waterfall(replace(base, terms=terms))
    assert svg is not None
    assert r"$\frac{1}{0}$" in svg


@pytest.mark.parametrize(
    "draw", [figures.waterfall, figures.phases, figures.step_times, figures.memory]
)
def test_figures_are_deterministic_whatever_the_user_configured(draw: object) -> None:
    report = literal_reports.straggler_report()
    assert callable(draw)
    first = draw(report)
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red"}):
        second = draw(report)
    assert first == second
    ElementTree.fromstring(first)


def test_figures_share_no_id() -> None:
    html = PAGES["straggler"]()
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert ids
    assert len(ids) == len(set(ids))


def test_every_colour_of_a_figure_is_a_variable_of_the_page() -> None:
    html = PAGES["straggler"]()
    style, body = html.split("</style>", 1)
    used = set(re.findall(r"var\(--([\w-]+)\)", body))
    assert used <= set(re.findall(r"--([\w-]+):", style))
    assert not re.search(r"(?:fill|stroke): #", body)


@pytest.mark.parametrize("name", ["straggler", "clean", "estimated", "superlinear"])
def test_the_waterfall_adds_up(name: str) -> None:
    report = REPORTS[name]
    bars = waterfall_bars(report)
    ideal, *terms, measured = bars
    assert ideal.end == report.speedup_ideal
    level = ideal.end
    for bar in terms:
        assert bar.start == pytest.approx(level)
        level = bar.end
    assert level == pytest.approx(measured.end, rel=1e-3)
    assert measured.end == report.speedup.value


def test_the_waterfall_of_a_superlinear_run_rises() -> None:
    kinds = {bar.label: bar.kind for bar in waterfall_bars(literal_reports.superlinear_report())}
    assert kinds["compute"] == "gain"
    assert kinds["transfer"] == "loss"


def test_no_figure_without_numbers() -> None:
    report = literal_reports.unknown_report()
    assert figures.waterfall(report) is None
    assert figures.phases(report) is None
    assert figures.step_times(report) is None
    assert figures.memory(report) is None


def test_reducing_a_series_keeps_its_peaks_and_its_gaps() -> None:
    excluded = ["warm-up"] * 100 + [None] * 9_900
    excluded[5_000] = "checkpoint"
    ms = [10.0] * 10_000
    ms[7_777] = 99.0
    series = StepSeries(tuple(range(10_000)), tuple(ms), tuple(excluded))
    kept = reduced(series, most=500)
    assert len(kept.index) < 510
    assert max(kept.high) == 99.0
    assert spans(kept) == [Span(0, 99, "warm-up"), Span(5_000, 5_000, "checkpoint")]
