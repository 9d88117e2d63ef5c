"""Rank target: trains each scenario with the probes off and on; losses and weights must be the same bits."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

from diag.probes import ProbeConfig, install
from helpers.ranks import say

STEPS = 5


class Net(nn.Module):
    def __init__(self, norm: bool = False, spare: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.spare = nn.Linear(4, 4) if spare else None
        self.last = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def batches(rank: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(100 + rank)
    data = [(torch.randn(16, generator=draw), torch.randn(3, generator=draw)) for _ in range(200)]
    loader = torch.utils.data.DataLoader(data, batch_size=8)  # type: ignore[arg-type]
    while True:
        yield from loader


def plain(model: nn.Module, rank: int, autocast: bool = False, accumulate: int = 1) -> list[str]:
    """Train and give every loss and the weights' sum, as exact hexadecimal floats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    source = batches(rank)
    seen: list[str] = []
    for _ in range(STEPS):
        for micro in range(accumulate):
            x, y = next(source)
            last = micro == accumulate - 1
            sync = nullcontext() if last or not isinstance(model, DDP) else model.no_sync()
            with sync, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
            seen.append(loss.item().hex())
        if isinstance(model, DDP):
            total = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            seen.append(total.item().hex())
        optimizer.step()
        optimizer.zero_grad()
    return seen


def hooked(rank: int) -> list[str]:
    model = DDP(Net())
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return plain(model, rank)


def sharded(rank: int) -> list[str]:
    model = Net()
    for part in (model.first, model.last):
        fully_shard(part)
    fully_shard(model)
    return plain(model, rank)


def replicated(rank: int) -> list[str]:
    from torch.distributed._composable import replicate

    return plain(replicate(Net()), rank)


def scaled(rank: int) -> list[str]:
    """A GradScaler whose second step overflows and is skipped."""
    model = DDP(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    source = batches(rank)
    seen = []
    for step in range(STEPS):
        x, y = next(source)
        loss = nn.functional.mse_loss(model(x), y)
        scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.append(loss.item().hex())
    return seen


def compiled(rank: int, norm: bool, inner: bool) -> list[str]:
    """Losses, then Dynamo's counts of graphs and breaks; DDP inside or outside of torch.compile."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if inner:
        model = DDP(torch.compile(Net(norm), backend="aot_eager"))
    else:
        model = torch.compile(DDP(Net(norm)), backend="aot_eager")
    seen = plain(model, rank)
    counters = torch._dynamo.utils.counters
    return [*seen, str(dict(counters["stats"])), str(dict(counters["graph_break"]))]


SCENARIOS: dict[str, Callable[[int], list[str]]] = {
    "fp32": lambda rank: plain(DDP(Net()), rank),
    "bf16": lambda rank: plain(DDP(Net()), rank, autocast=True),
    "user-hook": hooked,
    "static-graph": lambda rank: plain(DDP(Net(), static_graph=True), rank),
    "find-unused": lambda rank: plain(DDP(Net(spare=True), find_unused_parameters=True), rank),
    "no-sync": lambda rank: plain(DDP(Net()), rank, accumulate=3),
    "batch-norm": lambda rank: plain(DDP(Net(norm=True)), rank),
    "fsdp2": sharded,
    "replicate": replicated,
    "scaler-skips": scaled,
    "compiled": lambda rank: compiled(rank, norm=False, inner=False),
    "compiled-norm": lambda rank: compiled(rank, norm=True, inner=False),
    "compiled-inside": lambda rank: compiled(rank, norm=True, inner=True),
}

# FSDP2 asks the CPU's stream for events, which torch 2.6 does not have.
if not hasattr(torch.cpu.Stream(), "record_event"):
    del SCENARIOS["fsdp2"]


def train(name: str, rank: int) -> list[str]:
    torch.manual_seed(7)
    try:
        return SCENARIOS[name](rank)
    finally:
        gc.collect()


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    answer: dict[str, Any] = {}
    for name in names:
        off = train(name, rank)
        place = directory / name / "ranks" / f"{rank:05d}-0"
        session = install(ProbeConfig(place, rank, rank, 0, world, 0, "cpu"))
        on = train(name, rank)
        failures = dict(session.failures.first)
        session.finish("script")
        answer[name] = {"off": off, "on": on, "failures": failures}
    say(directory, rank, answer)
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
