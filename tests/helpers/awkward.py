"""Rank target: DDP trainings in awkward styles; rank 1 is late by LATE_S in every backward."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

from diag.probes import ProbeConfig, install
from diag.record.schema import PHASES
from helpers.ranks import say

STEPS, LATE_S = 6, 0.03


class Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


class Net(nn.Module):
    """`reentrant`: the first layer, whose gradient comes last, sits in a reentrant checkpoint."""

    def __init__(self, late_s: float, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.late_s, self.reentrant = late_s, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reentrant:
            hidden = checkpoint(self.first, x.requires_grad_(), use_reentrant=True)
        else:
            hidden = self.first(x)
        return self.last(Late.apply(hidden, self.late_s))


Step = Callable[[DDP, torch.Tensor], None]


def no_grad_forward_between(model: DDP, x: torch.Tensor) -> None:
    loss = model(x).sum()
    with torch.no_grad():
        model(x)
    loss.backward()


def several_losses(model: DDP, x: torch.Tensor) -> None:
    aside = torch.ones(3, requires_grad=True)
    torch.autograd.backward([aside.sum(), model(x).sum()])


def iterator_of_losses(model: DDP, x: torch.Tensor) -> None:
    losses = [torch.ones(3, requires_grad=True).sum(), model(x).sum()]
    torch.autograd.backward(iter(losses))


def plain(model: DDP, x: torch.Tensor) -> None:
    model(x).sum().backward()


def busy_thread_beside(model: DDP, x: torch.Tensor) -> None:
    """A thread fetches from a loader of its own during the backward."""
    data = torch.utils.data.TensorDataset(torch.zeros(16, 2))

    def fetch() -> None:
        for _ in torch.utils.data.DataLoader(data, batch_size=1):
            time.sleep(0.0005)

    thread = threading.Thread(target=fetch)
    loss = model(x).sum()
    thread.start()
    loss.backward()
    thread.join()


STYLES: dict[str, tuple[Step, bool]] = {
    "no-grad-forward": (no_grad_forward_between, False),
    "several-losses": (several_losses, False),
    "iterator": (iterator_of_losses, False),
    "reentrant": (plain, True),
    "thread": (busy_thread_beside, False),
}


def train(step: Step, reentrant: bool, rank: int) -> None:
    torch.manual_seed(0)
    model = DDP(Net(LATE_S if rank == 1 else 0.0, reentrant))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        step(model, torch.randn(4, 8))
        optimizer.step()


def main() -> None:
    directory = Path(sys.argv[1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    answer: dict[str, Any] = {}
    for name, (step, reentrant) in STYLES.items():
        session = install(ProbeConfig(directory / name / str(rank), rank, rank, 0, world, 0, "cpu"))
        rows: list[tuple[Any, ...]] = []
        waits: list[tuple[Any, ...]] = []
        session.capture.writer.append_step = rows.append
        session.capture.writer.append_collective = waits.append
        train(step, reentrant, rank)
        failures = dict(session.failures.first)
        session.finish("script")
        gc.collect()
        mean_ms = {
            p: sum(r[3 + i] for r in rows[1:]) / len(rows[1:]) / 1e6 for i, p in enumerate(PHASES)
        }
        answer[name] = {
            "mean_ms": mean_ms,
            "flags": sorted({row[14] for row in rows[1:]}),
            "ddp_waits": [row[2] for row in waits if row[10] == "ddp" and row[0] >= 0],
            "failures": failures,
        }
    say(directory, rank, answer)
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
