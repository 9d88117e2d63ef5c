"""Spans the user named: ms per used step, rank by rank, beside the baseline's."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from diag.record.reader import read_run
from diag.reports.explain import explain
from diag.reports.render.html import render_html
from diag.reports.render.json import render_json
from diag.reports.render.text import render_text
from helpers.cases import local_ms
from helpers.records import START_NS, Row, released_together, write_run

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/schemas/scaling-report-1.json").read_text("utf-8")
)
STEPS = 60


def spans(name: str, ms: float, times: int = 1) -> list[Row]:
    detail = json.dumps({"name": name})
    row = (START_NS, int(ms * 1e6), "span", detail)
    return [(*row[:2], step, *row[2:]) for step in range(STEPS) for _ in range(times)]


def run(runs_dir: Path, name: str, ranks: int, events: dict[int, list[Row]]) -> Path:
    phases = released_together((local_ms(ranks, STEPS) * 1e6).astype("int64"))
    return write_run(runs_dir, phases, name=name, samples=8, events=events)


def test_spans_are_summed_per_used_step_and_set_beside_the_baseline(tmp_path: Path) -> None:
    base = run(tmp_path, "base", 1, {0: spans("augment", 2.0)})
    events = {0: spans("augment", 1.5, times=2), 1: spans("augment", 7.0) + spans("<b>x", 1.0)}
    slow = run(tmp_path, "slow", 2, events)
    report = explain(read_run(slow), [read_run(base)])
    augment, only_one = report.spans
    assert augment.per_rank_ms == pytest.approx({0: 3.0, 1: 7.0})
    assert (augment.slowest, augment.mean_ms) == (1, pytest.approx(5.0))
    assert augment.baseline_ms == pytest.approx(2.0)
    assert (only_one.per_rank_ms, only_one.baseline_ms) == ({0: 0.0, 1: pytest.approx(1.0)}, None)
    text = render_text(report)
    row = next(line for line in text.splitlines() if "augment" in line)
    assert row.split() == ["augment", "5.0", "2.0", "7.0", "1"]
    assert max(map(len, text.splitlines())) <= 80
    jsonschema.validate(json.loads(render_json(report)), SCHEMA)
    assert "&lt;b&gt;x" in render_html(report)


def test_without_spans_nothing_is_said(tmp_path: Path) -> None:
    report = explain(read_run(run(tmp_path, "plain", 2, {})))
    assert report.spans == ()
    assert "spans" not in render_text(report)
