"""`diag runs`: the store in 80 columns, and as JSON."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from diag.cli.runs import Options, describe, render, runs
from diag.record.store import RunDir
from helpers.records import released_together, write_run

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def record(runs_dir: Path, name: str, ranks: int, ago: timedelta, **facts: Any) -> RunDir:
    phases = released_together(np.full((ranks, 7, 7), 1_000_000))
    created = (NOW - ago).isoformat()
    return RunDir(write_run(runs_dir, phases, name=name, run_facts={"created": created, **facts}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    record(tmp_path, "first", 1, timedelta(days=2))
    record(
        tmp_path,
        "second-with-a-rather-long-name-of-its-own",
        4,
        timedelta(minutes=5),
        exit_code=137,
        ended_by="signal",
    )
    record(
        tmp_path,
        "third",
        16,
        timedelta(seconds=9),
        device="cuda",
        script="/home/me/train_the_large_language_model.py",
    )
    record(tmp_path, "killed", 2, timedelta(hours=30), ended_by=None)
    return tmp_path


def listing(store: Path, **options: int) -> str:
    found = [describe(RunDir(path)) for path in sorted(store.iterdir())]
    return render(found, store, NOW.timestamp(), **options)


def test_the_list_is_as_agreed(store: Path) -> None:
    assert listing(store) == (
        "name    ranks  steps  ended             age\n"
        "first       1      7  finished          2 d ago\n"
        "killed      2      7  killed            1 d ago\n"
        "second-with-a-rather-long-name-of-its-own\n"
        "            4      7  failed (SIGKILL)  5 min ago\n"
        "third      16      7  finished          just now\n"
    )


def test_a_scripts_name_may_be_cut(store: Path) -> None:
    (store / "second-with-a-rather-long-name-of-its-own").rename(store / "second")
    assert listing(store).splitlines()[-1] == (
        "third      16  cuda        7  finished          just now   train_the_large_la..."
    )


def test_columns_come_and_go_with_the_room(store: Path) -> None:
    def columns(width: int) -> list[str]:
        return listing(store, width=width).splitlines()[0].split()

    assert columns(110) == ["name", "ranks", "device", "steps", "ended", "age", "script"]
    assert columns(100) == ["name", "ranks", "steps", "ended", "age", "script"]
    assert columns(90) == ["name", "ranks", "steps", "ended", "age"]
    for width in (80, 90, 100, 110):
        assert max(map(len, listing(store, width=width).splitlines())) <= width


def test_a_name_is_never_cut(store: Path) -> None:
    name = "a-very-long-name-" * 7
    record(store, name, 2, timedelta(minutes=1), ended_by="max-steps")
    lines = listing(store).splitlines()
    at = lines.index(name)
    assert lines[at + 1].split() == ["2", "7", "stopped", "at", "--max-steps", "1", "min", "ago"]
    assert max(len(line) for line in lines if line != name) <= 80


ENDS: list[tuple[dict[str, Any], str]] = [
    ({}, "finished"),
    ({"ended_by": "max-steps"}, "stopped at --max-steps"),
    ({"exit_code": 1}, "failed (exit 1)"),
    ({"ended_by": "signal", "exit_code": 130}, "interrupted"),
    ({"ended_by": "signal", "exit_code": 143}, "interrupted"),
    ({"ended_by": "signal", "exit_code": 137}, "failed (SIGKILL)"),
    ({"ended_by": "signal", "exit_code": 139}, "failed (SIGSEGV)"),
    ({"ended_by": "diag", "exit_code": 2}, "ended by diag"),
    ({"ended_by": "hang", "exit_code": 124}, "hung"),
    ({"ended_by": None}, "killed"),
    ({"ended_by": None, "launcher_pid": os.getpid()}, "running"),
]


@pytest.mark.parametrize(("facts", "word"), ENDS)
def test_how_a_run_ended_needs_no_explanation(
    tmp_path: Path, facts: dict[str, Any], word: str
) -> None:
    # Far in the future: this process, which stands in for the launcher, is older than the run.
    run = record(tmp_path, "run", 1, timedelta(days=-36500), **facts)
    assert f"  {word}  " in render([describe(run)], tmp_path, NOW.timestamp())


def test_it_prints_the_newest_first(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(Options(runs_dir=store)) == 0
    printed = capsys.readouterr().out
    names = ["third", "second-with-a-rather-long-name-of-its-own", "killed", "first"]
    assert [line.split()[0] for line in printed.splitlines() if line[0] != " "] == ["name", *names]


def test_json_holds_what_the_table_cuts(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(Options(runs_dir=store, as_json=True)) == 0
    contents = json.loads(capsys.readouterr().out)
    schema = Path(__file__).parents[2] / "docs/schemas/runs-1.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_text("utf-8"))).validate(contents)
    second = contents["runs"][1]
    assert second["name"] == "second-with-a-rather-long-name-of-its-own"
    assert second["exit_code"] == 137
    assert second["ended"] == "signal"
    assert second["steps"] == 7


def test_an_empty_store_says_how_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs(Options(runs_dir=tmp_path / "none")) == 0
    assert "diag run --gpus 2" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_run_is_listed_all_the_same(tmp_path: Path) -> None:
    run = record(tmp_path, "bad", 2, timedelta(0))
    run.run_json.write_text('{"world_size": "two", "script": 3')
    for rank_json in run.ranks.glob("*/rank.json"):
        rank_json.write_text("[]")
    listed = describe(run)
    assert (listed.ranks, listed.device, listed.script, listed.ended) == (
        None,
        None,
        None,
        "killed",
    )
    assert "bad" in render([listed], tmp_path, NOW.timestamp())


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a\x1b[31mb")
    run.ranks.mkdir(parents=True)
    assert "\x1b" not in render([describe(run)], tmp_path, NOW.timestamp())
