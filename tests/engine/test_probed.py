"""What the probes see of a training by the engine: micro-batches, skipped steps, evaluation, saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from diag import Engine
from diag.probes import ProbeConfig, install
from diag.record.schema import STEPS, StepFlag

Row = dict[str, Any]


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[list[Row]]:
    """The recorded steps of what the test trains; the first cut ends none."""
    session = install(ProbeConfig(tmp_path / "rank", 0, 0, 0, 1, 0, "cpu"))
    rows: list[Row] = []
    session.capture.ledger.deferred = False
    session.capture.ledger.sink.append_step = lambda row: rows.append(
        dict(zip(STEPS.names, row, strict=True))
    )
    yield rows
    session.finish("script")
    assert session.failures.counts == {}


def flagged(rows: list[Row], flag: StepFlag) -> list[int]:
    return [row["index"] for row in rows if row["flags"] & flag]


def prepared(engine: Engine, samples: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    parts: tuple[nn.Module, torch.optim.Optimizer, Any] = engine.prepare(
        model, optimizer, DataLoader(torch.randn(samples, 4), batch_size=2)
    )
    return parts


def test_a_window_is_one_step_of_several_micro_batches(steps: list[Row]) -> None:
    engine = Engine(gradient_accumulation_steps=3)
    model, optimizer, loader = prepared(engine, samples=28)
    for x in loader:  # 14 batches: four windows of three and one of two
        with engine.accumulate(model):
            engine.backward(model(x).mean())
            optimizer.step()
            optimizer.zero_grad()
    assert [row["micro_batches"] for row in steps] == [3, 3, 3, 2]
    assert [row["samples"] for row in steps] == [6, 6, 6, 4]


def test_a_step_the_loss_scale_leaves_out_is_flagged(steps: list[Row]) -> None:
    engine = Engine(mixed_precision="fp16", on_nonfinite_loss="ignore")
    model, optimizer, loader = prepared(engine, samples=16)
    for number, x in enumerate(loader):
        loss = model(x).float().mean()
        engine.backward(loss * torch.inf if number == 4 else loss * 1e-3)
        optimizer.step()
        skipped = engine.optimizer_step_was_skipped
        assert skipped == (number == 4)
        optimizer.zero_grad()
    # The optimizer's step comes after the cut: what it skipped is told by the step that follows.
    assert flagged(steps, StepFlag.SKIPPED) == [4]
    assert len(steps) == 7


def test_evaluation_and_saves_are_told_apart_from_training(
    steps: list[Row], tmp_path: Path
) -> None:
    engine = Engine()
    model, optimizer, loader = prepared(engine, samples=16)
    for number, x in enumerate(loader):
        engine.backward(model(x).mean())
        optimizer.step()
        optimizer.zero_grad()
        if number == 2:
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
        if number == 5:
            engine.save_state(tmp_path / "state")
    assert flagged(steps, StepFlag.EVALUATION) == [2]
    assert flagged(steps, StepFlag.CHECKPOINT) == [5]
