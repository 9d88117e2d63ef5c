"""The JSON contract: schema, finite numbers, no key lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diag.reports.model import Estimate, Report
from diag.reports.render.json import render_json, to_json
from helpers import literal_reports
from helpers.golden import assert_golden

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/schemas/scaling-report-1.json").read_text("utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
REPORTS = [
    literal_reports.straggler_report(),
    literal_reports.clean_report(),
    literal_reports.estimated_report(),
    literal_reports.superlinear_report(),
    literal_reports.unknown_report(),
    literal_reports.hostile_report(),
    literal_reports.many_ranks_report(),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda r: r.run.name[:12])
def test_every_report_is_valid(report: Report) -> None:
    VALIDATOR.validate(json.loads(render_json(report)))


def test_the_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_json_is_as_agreed() -> None:
    assert_golden("straggler.json", render_json(literal_reports.straggler_report()))


def test_the_schema_lists_every_key_that_is_written() -> None:
    assert list(_undeclared(to_json(literal_reports.straggler_report()), SCHEMA)) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(bad: float) -> None:
    base = literal_reports.straggler_report()
    report = replace(
        base,
        speedup=Estimate(bad, bad, bad),
        per_rank=(replace(base.per_rank[0], phases_ms={"data": bad}),),
    )
    text = render_json(report)
    assert json.loads(text)["speedup"] == {"value": None, "low": None, "high": None, "ideal": 4.0}
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize("missing", ["verdict", "terms", "intervals", "lost"])
def test_a_report_without_a_required_key_is_refused(missing: str) -> None:
    contents = to_json(literal_reports.straggler_report())
    del contents[missing]
    assert not VALIDATOR.is_valid(contents)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "scaling"), "sideways"),
        (("findings", 0, "severity"), "fatal"),
        (("speedup", "value"), "2.8x"),
        (("terms", 0, "term"), "magic"),
    ],
)
def test_a_wrong_value_is_refused(path: tuple[Any, ...], value: Any) -> None:
    contents = to_json(literal_reports.straggler_report())
    target: Any = contents
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert not VALIDATOR.is_valid(contents)


def _undeclared(value: Any, schema: dict[str, Any], where: str = "") -> Any:
    """Paths of keys the schema says nothing about, counts by reason apart."""
    if isinstance(value, dict):
        for key, item in value.items():
            known = schema.get("properties", {})
            if key in known:
                yield from _undeclared(item, known[key], f"{where}.{key}")
            elif "additionalProperties" not in schema:
                yield f"{where}.{key}"
    if isinstance(value, list):
        for item in value:
            yield from _undeclared(item, schema.get("items", {}), f"{where}[]")
