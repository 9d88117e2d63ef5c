"""Recordings of whole machines: what the doctor says of each, and how it looks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diag.cli.doctor import Options, exit_code, present
from diag.doctor.catalogue import ALL
from diag.doctor.checks import Outcome, Plan, Result, judge
from diag.doctor.facts import Facts
from diag.doctor.render import to_json, to_text
from helpers.golden import assert_golden
from helpers.machines import NAMES, machine

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "doctor-1.json"

# Every warning and failure; all else is well or skipped.
PROBLEMS = {
    "no-gpu": {},
    "healthy-8xh100": {},
    "cpu-torch-on-gpu-node": {"torch-build": "fail"},
    "nvml-failing": {"torch-cuda": "fail", "gpu-driver": "fail"},
    "tight-container": {
        "nccl-transport-off": "warn",
        "nccl-debug": "warn",
        "nccl-blocking-wait": "warn",
        "socket-interface": "fail",
        "cpu-cores": "fail",
        "host-memory": "warn",
        "shm-size": "fail",
        "open-files": "warn",
        "trace-permission": "warn",
    },
}


def results(name: str, plan: Plan | None = None) -> tuple[Result, ...]:
    return judge(machine(name), plan or Plan(), ALL)


def problems(found: tuple[Result, ...]) -> dict[str, str]:
    return {r.code: r.status for r in found if r.status in ("warn", "fail")}


def test_every_recording_is_expected_here_and_says_where_it_comes_from() -> None:
    assert set(PROBLEMS) == set(NAMES)
    for name in NAMES:
        assert machine(name).provenance.startswith(("recorded", "built"))


@pytest.mark.parametrize("name", NAMES)
def test_problems(name: str) -> None:
    found = results(name)
    assert problems(found) == PROBLEMS[name]
    assert not [r for r in found if "check itself failed" in r.outcome.title]
    assert exit_code(found, strict=False) == int("fail" in PROBLEMS[name].values())
    assert exit_code(found, strict=True) == int(bool(PROBLEMS[name]))


@pytest.mark.parametrize("name", NAMES)
def test_text(name: str) -> None:
    text = to_text(machine(name), results(name))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert_golden(f"doctor/{name}.txt", text)


def test_problems_alone_come_worst_first() -> None:
    text = to_text(machine("tight-container"), results("tight-container"), problems=True)
    assert_golden("doctor/tight-container.problems.txt", text)
    order = [line.split()[0] for line in text.splitlines() if line[:2] == "  " != line[2:4]]
    assert order == ["fail"] * 3 + ["warn"] * 6


def test_no_problems_is_said() -> None:
    text = to_text(machine("healthy-8xh100"), results("healthy-8xh100"), problems=True)
    assert "no problems" in text


@pytest.mark.parametrize("name", NAMES)
def test_json_follows_its_schema(name: str) -> None:
    document = to_json(machine(name), results(name))
    jsonschema.Draft202012Validator.check_schema(_schema())
    jsonschema.validate(document, _schema())
    assert [c["code"] for c in document["checks"]] == [c.code for c in ALL]
    assert set(document["checks"][0]) == set(_schema()["$defs"]["check"]["properties"])


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return schema


@pytest.mark.parametrize("change", [{"status": "fine"}, {"evidence": "one"}, {"title": None}])
def test_the_schema_refuses_other_documents(change: dict[str, Any]) -> None:
    document = to_json(machine("no-gpu"), results("no-gpu"))
    document["checks"][0] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, _schema())


def test_ranks_asked_for_are_held_against_the_machine() -> None:
    assert problems(results("no-gpu", Plan(gpus=4)))["cpu-cores"] == "warn"
    assert problems(results("healthy-8xh100", Plan(gpus=16)))["gpus-visible"] == "fail"


def test_a_host_name_that_leads_nowhere_matters_to_several_nodes_only() -> None:
    assert problems(results("no-gpu")) == {}
    assert problems(results("no-gpu", Plan(nnodes=2))) == {"host-name": "warn"}


def test_an_ignored_check_is_skipped() -> None:
    found = results("no-gpu", Plan(ignore=frozenset({"host-name"}), nnodes=2))
    assert problems(found) == {}
    (ignored,) = (r for r in found if r.code == "host-name")
    assert (ignored.status, ignored.outcome.title) == ("skip", "ignored, as asked")


def test_present_prints_json_that_a_program_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert present(machine("nvml-failing"), Options(as_json=True)) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "diag.doctor/1"


def test_a_mistake_in_a_check_is_shown_and_hides_nothing() -> None:
    def broken(facts: Facts, plan: Plan) -> Outcome:
        raise KeyError("oops")

    first, *rest = (c for c in ALL if c.code in ("shm-size", "host-name"))
    mistaken, well = judge(machine("no-gpu"), Plan(), (replace(first, judge=broken), *rest))
    assert mistaken.status == "skip"
    assert "KeyError" in mistaken.outcome.title
    assert well.status == "ok"
