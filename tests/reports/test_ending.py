"""A report of a run that ended badly says so first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diag.record.reader import Run, read_run
from diag.record.schema import PHASES
from diag.reports.ending import ending
from diag.reports.explain import explain
from helpers.records import released_together, write_run

ERROR = {"type": "ValueError", "message": "bad label\nin batch", "file": "train.py", "line": 22}
ECHO = {"type": "RuntimeError", "message": "Connection closed by peer", "file": "t.py", "line": 9}


def ended(tmp_path: Path, errors: dict[int, Any] | None = None, **facts: Any) -> Run:
    own = np.full((2, 5, len(PHASES)), 10)
    write_run(tmp_path, released_together(own), name="run", run_facts=facts)
    run = read_run(tmp_path / "run")
    ranks = {
        r: replace(one, facts={**one.facts, "error": (errors or {}).get(r), "end_ns": 100 - r})
        for r, one in run.ranks.items()
    }
    return replace(run, ranks=ranks)


def test_a_run_that_ended_well_needs_no_word(tmp_path: Path) -> None:
    assert list(ending(ended(tmp_path, ended_by="script", exit_code=0))) == []
    assert list(ending(ended(tmp_path / "b", ended_by="max-steps", exit_code=0))) == []


def test_the_earliest_error_is_named_not_its_echo(tmp_path: Path) -> None:
    run = ended(tmp_path, {0: ECHO, 1: ERROR}, ended_by="script", exit_code=1)
    assert list(ending(run)) == [
        "the run failed with exit code 1: rank 1, ValueError: bad label (train.py:22)"
    ]


@pytest.mark.parametrize(
    ("ended_by", "code", "word"),
    [
        ("signal", 130, "interrupted"),
        ("signal", 137, "the run failed: a rank was killed by SIGKILL"),
        ("diag", 2, "diag itself"),
    ],
)
def test_other_ends(tmp_path: Path, ended_by: str, code: int, word: str) -> None:
    (sentence,) = ending(ended(tmp_path, ended_by=ended_by, exit_code=code))
    assert word in sentence
    assert str(code) in sentence


def test_the_report_warns_of_it_first(tmp_path: Path) -> None:
    report = explain(ended(tmp_path, ended_by="script", exit_code=7))
    assert report.warnings[0] == "the run failed with exit code 7"
