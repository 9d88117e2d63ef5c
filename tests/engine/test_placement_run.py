"""`diag run` sees what placed models do: steps, micro-batches, and who waits for whom."""

from __future__ import annotations

from textwrap import dedent

import pandas as pd
import pytest

from diag.reports.frames import frames
from helpers.launching import run_diag
from helpers.strategies import STRATEGIES

pytestmark = pytest.mark.ranks

STEPS = 9
FAST_MS, SLOW_MS = 5.0, 25.0
TRAIN = f"""
    import time
    import torch
    from torch import nn
    from diag.engine.options import DDPOptions, FSDPOptions
    from diag.engine.placement import place, set_gradient_sync
    from diag.engine.process import join_job

    process = join_job(cpu=True)

    class Device(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            time.sleep(({SLOW_MS} if process.rank else {FAST_MS}) / 1000)
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return Device.apply(self.layer(x))

    def train(strategy, ddp):
        model = nn.Sequential(Block(), Block())
        place(model, process, strategy, ddp, FSDPOptions(activation_checkpointing=True))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range({STEPS}):
            for micro in range(2):
                set_gradient_sync(model, micro == 1)
                model(torch.ones(2, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    train("ddp", DDPOptions(static_graph=True))
    if "fsdp" in {STRATEGIES}:
        train("fsdp", DDPOptions())
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("run")
    (folder / "train.py").write_text(dedent(TRAIN))
    words = ("run", "--gpus", "2", "--device", "cpu", "--name", "placed", "train.py")
    run = run_diag(*words, cwd=folder)
    assert run.code == 0, run.err
    return frames(folder / "diag-runs/placed").steps


def test_every_step_is_recorded_with_its_micro_batches(steps: pd.DataFrame) -> None:
    # A step ends where its gradients are there: the first only opens the count.
    assert steps.groupby("rank").size().tolist() == [len(STRATEGIES) * STEPS - 1] * 2
    assert set(steps["micro_batches"]) == {2}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_fast_rank_waits_for_the_slow_one(steps: pd.DataFrame, strategy: str) -> None:
    numbers = range(4, STEPS - 1) if strategy == "ddp" else range(STEPS + 4, 2 * STEPS - 1)
    mean = steps[steps["index"].isin(numbers)].groupby("rank").mean(numeric_only=True) / 1e6
    excess = 4 * (SLOW_MS - FAST_MS)  # two blocks, two micro-batches
    assert mean["forward_ns"][1] - mean["forward_ns"][0] > 0.8 * excess
    assert mean["exposed_comm_ns"][0] - mean["exposed_comm_ns"][1] > 0.8 * excess
