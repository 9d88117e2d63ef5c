"""The metrics file: strict JSON, lines that survive a torn one; trackers on the ranks they want."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diag.engine.process import Process
from diag.engine.tracking import (
    Elsewhere,
    JsonlTracker,
    Trackers,
    choose_trackers,
    read_jsonl,
)
from diag.errors import DiagError


def rank(number: int) -> Process:
    return Process(number, number, 2, 2, torch.device("cpu"), "gloo")


class Spy:
    """A tracker as a user would write it."""

    name = "spy"

    def __init__(self, main_process_only: bool = True) -> None:
        self.main_process_only = main_process_only
        self.calls: list[Any] = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append((values, step, kwargs))

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_run(tmp_path: Path) -> None:
    trackers = Trackers(rank(0), choose_trackers(None, tmp_path / "logs", "run"))
    trackers.start({"lr": 0.1, "folder": tmp_path})
    trackers.log({"loss": torch.tensor(0.5), "acc": np.float32(0.25)}, step=3)
    trackers.log({"per_class": torch.tensor([1, 2]), "nested": {"a": (1, None, True)}})
    trackers.finish()
    lines = [json.loads(x) for x in (tmp_path / "logs" / "run.jsonl").read_text().splitlines()]
    assert lines[0]["config"] == {"lr": 0.1, "folder": str(tmp_path)}
    assert (lines[1]["step"], lines[1]["values"]) == (3, {"loss": 0.5, "acc": 0.25})
    assert lines[2]["values"] == {"per_class": [1, 2], "nested": {"a": [1, None, True]}}
    assert all(line["time"] > 1.7e9 for line in lines)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "m.jsonl")
    tracker.log({"a": float("nan"), "b": torch.tensor([1.0, float("inf")]), "c": -np.inf})
    tracker.finish()
    text = (tmp_path / "m.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(text, parse_constant=refuse)
    assert line["values"] == {"a": None, "b": [1.0, None], "c": None}


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "val')
    tracker = JsonlTracker(path)
    tracker.log({}, step=3)
    tracker.finish()
    assert [line["step"] for line in read_jsonl(path)] == [1, 3]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "m.jsonl")
    tracker.log({"loss": 1.0}, step=0)
    assert [line["step"] for line in read_jsonl(tmp_path / "m.jsonl")] == [0]  # not closed yet
    tracker.finish()
    tracker.finish()


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for attempt in range(2):
        tracker = JsonlTracker(tmp_path / "m.jsonl")
        tracker.store_init_configuration({"attempt": attempt})
        tracker.finish()
    configs = [line["config"]["attempt"] for line in read_jsonl(tmp_path / "m.jsonl")]
    assert configs == [0, 1]


def test_trackers_run_where_they_want_to(tmp_path: Path) -> None:
    everywhere, main = Spy(main_process_only=False), Spy()
    for number in range(2):
        trackers = Trackers(rank(number), [main, everywhere, JsonlTracker(tmp_path / "m.jsonl")])
        trackers.start({"lr": 1})
        trackers.log({"loss": 1}, step=number, log_kwargs={"spy": {"tag": "x"}})
        assert isinstance(trackers.get("jsonl"), Elsewhere if number else JsonlTracker)
        trackers.get("spy").log({"direct": number})
        trackers.finish()
    direct = ({"direct": 0}, None, {})
    assert main.calls == [{"lr": 1}, ({"loss": 1}, 0, {"tag": "x"}), direct, "finish"]
    assert len([call for call in everywhere.calls if call != "finish"]) == 5
    with pytest.raises(DiagError) as error:
        trackers.get("wandb")
    assert error.value.what == "There is no tracker 'wandb'; there is 'spy', 'spy', 'jsonl'."


def test_which_trackers(tmp_path: Path) -> None:
    spy = Spy()
    chosen = choose_trackers(["jsonl", spy], tmp_path, "run")
    assert isinstance(chosen[0], JsonlTracker)
    assert chosen[0].path == tmp_path / "run.jsonl"
    assert chosen[1] is spy
    with pytest.raises(DiagError) as error:
        choose_trackers("wandb", tmp_path, "run")
    assert error.value.slug == "unknown-tracker"
    assert "'wandb'" in error.value.what
    assert "finish()" in error.value.hint
    with pytest.raises(DiagError) as error:
        choose_trackers(Spy, tmp_path, "run")
    assert error.value.slug == "unknown-tracker"
    assert "log_with=Spy()" in error.value.hint


def test_accelerates_own_kind_of_tracker_goes_on_working(tmp_path: Path) -> None:
    general = pytest.importorskip("accelerate.tracking").GeneralTracker

    class Mine(general):  # type: ignore[misc, valid-type]
        name = "mine"
        requires_logging_directory = False
        tracker = None
        started = False

        def start(self) -> None:
            self.started = True

    mine = Mine()
    trackers = Trackers(rank(0), choose_trackers(mine, tmp_path, "run"))
    trackers.start({"lr": 1})
    trackers.log({"loss": 1})
    assert mine.started
    assert trackers.get("mine") is mine
