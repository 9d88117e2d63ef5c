"""Each of torch's private names may be missing: the training runs, the record says what is lost."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.capabilities import LATE_S, STEPS
from helpers.ranks import run_ranks

pytestmark = pytest.mark.ranks

CAPABILITIES = [
    "work_wait", "process_group_methods", "functional_wait", "ddp_instances", "ddp_buffers",
    "monitored_barrier", "engine_callback", "backward", "optimizer_hooks", "grad_scaler",
    "data_loader", "checkpoint", "hidden_from_dynamo", "future_wait", "ddp_forward_end",
    "graph_task",
]  # fmt: skip
LATE_MS = LATE_S * 1e3


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("capabilities")
    return run_ranks("helpers.capabilities", 2, directory, "nothing", *CAPABILITIES)


def test_everything_is_there_on_this_torch(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        whole = answer["taken"]["nothing"]
        assert all(whole["capabilities"].values())
        assert whole["failures"] == {}
        assert whole["sources"] == ["buffers", "ddp", "python"]


@pytest.mark.parametrize("name", CAPABILITIES)
def test_the_training_runs_without_it(answers: list[dict[str, Any]], name: str) -> None:
    for answer in answers:
        taken = answer["taken"][name]
        assert taken["capabilities"][name] is False
        assert taken["failures"] == {}
        assert taken["exact"]
        expected = 0 if name in ("optimizer_hooks", "backward") else STEPS + 1
        assert taken["steps"] == expected


def test_the_late_ranks_lateness_is_the_others_exposed_time(answers: list[dict[str, Any]]) -> None:
    for name in ("nothing", "work_wait", "engine_callback"):
        early, late = (answer["taken"][name]["mean_ms"] for answer in answers)
        # Late twice a step: before the loss all-reduce, and in backward before DDP's.
        assert early["exposed_comm"] == pytest.approx(2 * LATE_MS, rel=0.4), name
        assert late["exposed_comm"] < LATE_MS * 0.6, name
        assert late["backward"] == pytest.approx(LATE_MS, rel=0.5), name


def test_nothing_stays_behind(answers: list[dict[str, Any]]) -> None:
    assert [answer["changed"] for answer in answers] == [[], []]
