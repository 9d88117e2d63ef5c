"""`diag runs`: the store in 80 columns, and as JSON."""

from __future__ import annotations

import json
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


def listing(store: Path) -> str:
    found = [describe(RunDir(path)) for path in sorted(store.iterdir())]
    return render(found, store, NOW.timestamp())


def test_the_list_is_as_agreed(store: Path) -> None:
    assert listing(store) == (
        "name                      ranks  device  steps  ended     age        script\n"
        "first                         1  cpu         7  script    2 d ago    train.py\n"
        "killed                        2  cpu         7  killed    1 d ago    train.py\n"
        "second-with-a-rather-...      4  cpu         7  exit 137  5 min ago  train.py\n"
        "third                        16  cuda        7  script    just now   train_th...\n"
    )


def test_it_prints_the_newest_first(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(Options(runs_dir=store)) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["third", "second-with-a-rather-...", "killed", "first"]


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
