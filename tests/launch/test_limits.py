"""--max-steps and the guard, on real optimizers in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

from diag.launch import limits
from diag.launch.limits import FirstOptimizer, NotDistributed, StepLimitReached


@pytest.fixture(autouse=True)
def hooks_given_back() -> Iterator[None]:
    hooks = (
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    before: list[dict[int, Any]] = [dict(h) for h in hooks]
    yield
    for hook, old in zip(hooks, before, strict=True):
        hook.clear()
        hook.update(old)


def parameters() -> list[torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return [parameter]


def test_stops_right_after_the_nth_step_and_finally_runs() -> None:
    limits.install(max_steps=3, guard=False)
    weights = parameters()
    optimizer = torch.optim.SGD(weights, lr=1.0)
    cleaned = []

    def train() -> None:
        try:
            for _ in range(10):
                optimizer.step()
        finally:
            cleaned.append(True)

    with pytest.raises(StepLimitReached) as ended:
        train()
    assert ended.value.code == 0
    assert cleaned == [True]
    assert weights[0].tolist() == [-2.0, -2.0]  # three steps were taken, the third included


def test_only_the_first_stepping_optimizer_counts() -> None:
    limits.install(max_steps=2, guard=False)
    generator, critic = torch.optim.SGD(parameters()), torch.optim.Adam(parameters())
    steps = []

    def train() -> None:
        for _ in range(10):
            generator.step()
            steps.append("generator")
            critic.step()
            steps.append("critic")

    with pytest.raises(StepLimitReached):
        train()
    assert steps == ["generator", "critic"]


def test_a_new_optimizer_takes_over_when_the_first_is_gone() -> None:
    counter = FirstOptimizer()
    for _ in range(3):  # one per epoch
        optimizer = torch.optim.SGD(parameters())
        counter.count(optimizer)
        del optimizer
    assert counter.steps == 3


def test_guard_stops_before_the_first_step_and_names_the_line() -> None:
    limits.install(max_steps=None, guard=True)
    weights = parameters()
    optimizer = torch.optim.SGD(weights, lr=1.0)
    with pytest.raises(NotDistributed) as stopped:
        optimizer.step()
    assert stopped.value.code == 2
    assert weights[0].tolist() == [1.0, 1.0]
    assert stopped.value.location is not None
    assert stopped.value.location["file"] == __file__
    assert stopped.value.location["function"] == (
        "test_guard_stops_before_the_first_step_and_names_the_line"
    )


def test_guard_lets_a_distributed_script_pass_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    limits.install(max_steps=None, guard=True)
    monkeypatch.setattr(limits, "_is_distributed", lambda: True)
    torch.optim.SGD(parameters()).step()
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before


def test_forked_children_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    limits.install(max_steps=1, guard=True)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    torch.optim.SGD(parameters()).step()
