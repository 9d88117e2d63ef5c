"""A Report as JSON: the outside contract ``diag.scaling-report/1``.

The schema is docs/schemas/scaling-report-1.json. Additive changes keep the number.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from diag.record.plain import plain_json
from diag.reports.model import Report

SCHEMA = "diag.scaling-report/1"


def to_json(report: Report) -> dict[str, Any]:
    """The contract's object: built from dicts, lists, str, int, finite float, bool and None."""
    contents = {
        "schema": SCHEMA,
        "diag_version": report.diag_version,
        "run": {**asdict(report.run), "rehearsal": report.rehearsal},
        "baseline": {**asdict(report.baseline), "command": report.baseline_command},
        "throughput": asdict(report.throughput),
        "speedup": {**asdict(report.speedup), "ideal": report.speedup_ideal},
        "efficiency": asdict(report.efficiency),
        "intervals": {"level": report.interval_level, "kind": report.interval_kind},
        "step_ms": {"measured": report.step_measured_ms, "ideal": report.step_ideal_ms},
        "terms": [asdict(term) for term in report.terms],
        "pop": asdict(report.pop),
        "wall": asdict(report.wall),
        "per_rank": [asdict(row) for row in report.per_rank],
        "spans": [
            asdict(span) | {"ms": span.mean_ms, "slowest_rank": span.slowest}
            for span in report.spans
        ],
        "findings": [asdict(finding) for finding in report.findings],
        "verdict": report.verdict,
        "warnings": report.warnings,
        "lost": report.lost,
        "probe_overhead": asdict(report.probe_overhead),
    }
    plain = plain_json(contents)
    assert isinstance(plain, dict)
    return plain


def render_json(report: Report) -> str:
    """One JSON document, indented, ASCII, ending in a newline."""
    return json.dumps(to_json(report), indent=2, allow_nan=False) + "\n"
