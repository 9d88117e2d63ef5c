"""Rank target: one short training per capability taken away; what each left in its record."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from diag.probes import ProbeConfig, install
from diag.record.schema import PHASES
from helpers.ranks import say

STEPS, LATE_S = 6, 0.03


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


def train(rank: int) -> None:
    """Rank 1 is late before each loss all-reduce and in each backward, by LATE_S."""
    data = torch.utils.data.TensorDataset(torch.randn(4 * (STEPS + 2), 8))
    model = DDP(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def late(grad: torch.Tensor) -> None:
        time.sleep(LATE_S if rank == 1 else 0.0)

    for (x,) in torch.utils.data.DataLoader(data, batch_size=4):
        y = model(x)
        y.register_hook(late)
        y.sum().backward()
        optimizer.step()
        time.sleep(LATE_S if rank == 1 else 0.0)
        dist.all_reduce(y.detach().sum())


def taken_away(name: str, rank: int, world: int, directory: Path) -> dict[str, Any]:
    place = directory / name / f"{rank:05d}-0"
    options = {"without": [name]}
    session = install(ProbeConfig(place, rank, rank, 0, world, 0, "cpu", options=options))
    capture = session.capture
    rows: list[tuple[Any, ...]] = []
    waits: list[tuple[Any, ...]] = []
    capture.writer.append_step = rows.append
    capture.writer.append_collective = waits.append
    train(rank)
    capabilities = dict(capture.seams.capabilities)
    failures = dict(session.failures.first)
    session.finish("script")
    gc.collect()
    mean_ms = {
        phase: sum(row[3 + at] for row in rows) / max(len(rows), 1) / 1e6
        for at, phase in enumerate(PHASES)
    }
    exact = all(sum(row[3 : 3 + len(PHASES)]) == row[2] - row[1] for row in rows)
    return {
        "steps": len(rows), "exact": exact, "mean_ms": mean_ms, "failures": failures,
        "capabilities": capabilities, "sources": sorted({row[10] for row in waits}),
    }  # fmt: skip


def originals() -> dict[str, Any]:
    """What stands in the places the seams replace."""
    from torch._C._distributed_c10d import ProcessGroup, Work
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import _functional_collectives as functional
    from torch.optim import optimizer
    from torch.utils.data import DataLoader
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    owners = [Work, ProcessGroup, GradScaler, functional, DDP, DataLoader, _BaseDataLoaderIter,
              torch.autograd, dist, torch, nn.Module, Net]  # fmt: skip
    held = {f"{o.__name__}.{k}": v for o in owners for k, v in list(vars(o).items())}
    held["pre"] = dict(optimizer._global_optimizer_pre_hooks)
    held["post"] = dict(optimizer._global_optimizer_post_hooks)
    held["gc"] = list(gc.callbacks)
    return held


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    train(rank)
    before = originals()
    answer = {name: taken_away(name, rank, world, directory) for name in names}
    after = originals()
    changed = [
        key for key in before if before[key] is not after.get(key) and before[key] != after.get(key)
    ]
    say(directory, rank, {"taken": answer, "changed": changed})
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
