"""`diag hang`: verdicts made again from a run's directory, and clear words where there is none."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diag.cli.hang import Options, hang
from diag.errors import DiagError
from diag.record.evidence import HangEvidence
from diag.record.evidence_json import write_evidence
from diag.record.store import RunDir
from helpers.hang_cases import DEAD, MISSING, NO_HANG

SCHEMA = Path(__file__).parents[2] / "docs/schemas/hang-1.json"


def record(store: Path, name: str, *hangs: HangEvidence, hour: int = 0, **facts: Any) -> RunDir:
    run = RunDir(store / name)
    run.ranks.mkdir(parents=True)
    created = f"2026-03-01T{hour:02d}:00:00+00:00"
    run.write_run_json({"created": created, "ended_by": "hang", "exit_code": 124, **facts})
    for number, one in enumerate(hangs):
        folder = run.path / "hang" / str(number)
        folder.mkdir(parents=True)
        write_evidence(folder / "evidence.json", replace(one, run=name))
    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    record(tmp_path, "old", MISSING[0].evidence, hour=1)
    record(tmp_path, "twice", DEAD[5].evidence, MISSING[0].evidence, hour=2)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], options: Options) -> str:
    assert hang(options) == 0
    return capsys.readouterr().out


def test_the_newest_run_that_hung_is_explained(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, Options(runs_dir=store))
    lines = [line for line in text.splitlines() if line.startswith("twice: ")]
    assert [line.split(",")[0] for line in lines] == [
        "twice: hang-dead-rank",
        "twice: hang-missing-rank",
    ]
    assert [line for line in text.splitlines() if line.startswith("Hang ")] == ["Hang 0", "Hang 1"]


def test_a_newer_run_without_evidence_is_named(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, "fine", hour=3, ended_by="script", exit_code=0)
    assert hang(Options(runs_dir=store)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Hang 0\n\ntwice: ")
    assert captured.err == (
        "diag: the newest run, fine, has no evidence of a hang; this is twice\n"
    )


def test_a_run_can_be_named_or_copied(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, Options(run="old", runs_dir=store)).startswith("old: hang-missing")
    path = str(store / "old")
    assert printed(capsys, Options(run=path, runs_dir=tmp_path / "x")).startswith("old: hang-mis")


@pytest.mark.parametrize(
    ("number", "code"),
    [(None, "hang-missing-rank"), (0, "hang-dead-rank"), (1, "hang-missing-rank")],
)
def test_json_holds_one_verdict(
    store: Path, capsys: pytest.CaptureFixture[str], number: int | None, code: str
) -> None:
    options = Options(run="twice", runs_dir=store, number=number, as_json=True)
    contents = json.loads(printed(capsys, options))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8"))).validate(contents)
    assert (contents["code"], contents["number"]) == (code, 1 if number is None else number)
    assert contents["run"] == "twice"


@pytest.mark.parametrize(
    ("facts", "how"),
    [
        ({"ended_by": "script", "exit_code": 0}, "finished"),
        ({"ended_by": "script", "exit_code": 1}, "failed (exit 1)"),
        ({"ended_by": "signal", "exit_code": 137}, "failed (SIGKILL)"),
        ({"ended_by": None}, "was killed"),
        (
            {"ended_by": None, "launcher_pid": os.getpid(), "created": "2126-01-01"},
            "is still running",
        ),
    ],
)
def test_without_evidence_it_says_how_the_run_ended(
    tmp_path: Path, facts: dict[str, Any], how: str
) -> None:
    record(tmp_path, "fine", **facts)
    for name in ("fine", None):
        with pytest.raises(DiagError) as caught:
            hang(Options(run=name, runs_dir=tmp_path))
        assert caught.value.slug == "no-hang-evidence"
        assert caught.value.exit_code == 3
        assert caught.value.what.startswith("there is no evidence of a hang in ")
        assert caught.value.what.endswith(f"fine; it {how}")


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiagError) as caught:
        hang(Options(runs_dir=tmp_path / "none"))
    assert caught.value.slug == "no-runs"


def test_a_number_that_is_none_is_refused(store: Path) -> None:
    with pytest.raises(DiagError) as caught:
        hang(Options(run="twice", runs_dir=store, number=7))
    assert (caught.value.slug, caught.value.hint) == ("no-such-hang", "there are: 0, 1")


def test_damaged_evidence_costs_only_itself(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = store / "twice/hang/0/evidence.json"
    torn.write_bytes(torn.read_bytes()[:100])
    assert hang(Options(run="twice", runs_dir=store)) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("twice: hang-missing-rank")
    assert "0/evidence.json is torn" in captured.err


def test_nothing_but_damaged_evidence_is_an_error(store: Path) -> None:
    (store / "old/hang/0/evidence.json").write_text("{}")
    with pytest.raises(DiagError) as caught:
        hang(Options(run="old", runs_dir=store))
    assert caught.value.slug == "bad-evidence"


def test_other_things_in_the_folder_are_left_alone(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tmp", "7"):
        (store / "old/hang" / name).mkdir()
    assert printed(capsys, Options(run="old", runs_dir=store)).startswith("old: hang-missing")


def test_a_pause_that_was_looked_into_is_told_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, "saved", NO_HANG[0].evidence, ended_by="script", exit_code=0)
    assert "no hang, but a pause (checkpoint)" in printed(capsys, Options(runs_dir=tmp_path))
