"""A training whose every cause of slowness is known, for bench/planted.py.

Compute is an autograd.Function that sleeps: a device of known speed that needs no core, so
that several ranks fit on a small machine. The plan says what to plant and on which ranks; a
run of one rank plants nothing and is the baseline.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

MS = 1e-3
MODELS = ("ddp", "batchnorm", "fsdp", "engine-ddp", "engine-fsdp")


class SleepingDevice(torch.autograd.Function):
    """Takes `forward_s` in forward and `backward_s` in backward, and changes nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward_s: float, backward_s: float) -> torch.Tensor:
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return grad, None, None


class Block(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.forward_s = self.backward_s = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(SleepingDevice.apply(self.linear(x), self.forward_s, self.backward_s))


class Net(nn.Module):
    def __init__(self, blocks: int, width: int, norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, norm) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Samples(torch.utils.data.Dataset[torch.Tensor]):
    """Delivers at once, or after `delay_s` per batch."""

    def __init__(self, count: int, width: int, batch: int) -> None:
        self.data = torch.randn(count, width)
        self.batch = batch
        self.delay_s = 0.0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index % self.batch == 0 and self.delay_s:
            time.sleep(self.delay_s)
        return self.data[index]


class Plan:
    """What is planted in which step: {"phase", "ranks", "ms", "every", "rotate", "block"}."""

    def __init__(self, causes: list[dict[str, Any]], rank: int, world: int, seed: int) -> None:
        self.causes = causes if world > 1 else []
        self.rank, self.world, self.seed = rank, world, seed

    def delay_s(self, phase: str, step: int) -> float:
        total = 0.0
        for number, cause in enumerate(self.causes):
            if cause["phase"] != phase or step % cause.get("every", 1):
                continue
            if cause.get("rotate"):
                # The same draw on every rank: exactly one rank is late in each step.
                late = random.Random(f"{self.seed}/{number}/{step}").randrange(self.world)
                total += cause["ms"] * MS * (late == self.rank)
            elif self.rank in cause["ranks"]:
                total += cause["ms"] * MS
        return total


class SlowDisk:
    """A file that takes its time: a checkpoint of known duration."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def write(self, data: bytes) -> int:
        time.sleep(self.seconds)
        self.seconds = 0.0
        return len(data)

    def flush(self) -> None:
        return None


def build(options: argparse.Namespace) -> tuple[nn.Module, Net]:
    net = Net(options.blocks, options.width, norm=options.model == "batchnorm")
    if options.model.startswith("engine"):
        return net, net  # the engine places it
    if options.model == "fsdp":
        for block in net.blocks:
            fully_shard(block)
        fully_shard(net)
        return net, net
    return DistributedDataParallel(net), net


def set_device_speed(
    net: Net, options: argparse.Namespace, plan: Plan, step: int, micro: int
) -> None:
    """This micro-batch's compute: its part of the base work spread over the blocks, and in the
    step's first one what is planted, on one of them."""
    count = len(net.blocks)
    for block in net.blocks:
        block.forward_s = options.forward_ms * MS / count / options.accumulate
        block.backward_s = options.backward_ms * MS / count / options.accumulate
    if micro:
        return
    # Each rank slow in a block of its own, where the plan says "own".
    own = net.blocks[plan.rank % count]
    middle = net.blocks[count // 2]
    middle.forward_s += plan.delay_s("forward", step)
    middle.backward_s += plan.delay_s("backward", step)
    own.forward_s += plan.delay_s("own-forward", step)


@dataclass
class TorchLoop:
    """A micro-batch as torch alone does it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: torch.utils.data.DataLoader[torch.Tensor]
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.batches = iter(self.loader)

    def train(self, x: torch.Tensor) -> torch.Tensor:
        loss = self.model(x).pow(2).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


@dataclass
class EngineLoop(TorchLoop):
    """A micro-batch of the engine's, accumulated."""

    def __post_init__(self) -> None:
        from diag import Engine
        from diag.engine.options import FSDPOptions

        self.engine = Engine(
            strategy=self.options.model.removeprefix("engine-"),
            gradient_accumulation_steps=self.options.accumulate,
            fsdp=FSDPOptions(wrap_classes=("Block",)),
        )
        self.model, self.optimizer, self.loader = self.engine.prepare(
            self.model, self.optimizer, self.loader
        )
        super().__post_init__()

    def train(self, x: torch.Tensor) -> torch.Tensor:
        with self.engine.accumulate(self.model):
            loss: torch.Tensor = self.model(x).pow(2).mean()
            self.engine.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss


def step_marker(model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """TraceML must be told where a step is (it has no such need in diag's runs)."""
    if not os.environ.get("MARK_STEPS_FOR_TRACEML"):
        return nullcontext
    import traceml_ai

    traceml_ai.init()
    return lambda: traceml_ai.trace_step(model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, default="ddp")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--forward-ms", type=float, default=8.0)
    parser.add_argument("--backward-ms", type=float, default=12.0)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--reduce-loss", action="store_true")
    parser.add_argument("--unsynced-blocks", type=int, default=0, help="alternate with no_sync")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # What is planted travels beside the arguments: the baseline has the same ones.
    causes = json.loads(os.environ.get("PLANTED", "[]"))

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    train(options, Plan(causes, rank, world, options.seed))
    gc.collect()  # with a live DDP the group's end may abort
    dist.destroy_process_group()


def train(options: argparse.Namespace, plan: Plan) -> None:
    model, net = build(options)
    marked = step_marker(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loop = EngineLoop if options.model.startswith("engine") else TorchLoop
    # Every rank of a DDP script reads all of it; the engine divides it among them.
    share = plan.world if loop is EngineLoop else 1
    batches = (options.steps + 1) * options.accumulate * share
    data = Samples(options.batch * batches, options.width, options.batch)
    loader = torch.utils.data.DataLoader(data, batch_size=options.batch)
    training = loop(model, optimizer, loader, options)
    block = options.unsynced_blocks
    took: dict[bool, list[float]] = {True: [], False: []}

    def one(step: int) -> None:
        for micro in range(options.accumulate):
            loss = one_micro(step, micro)
        if options.reduce_loss:
            mean = loss.detach().clone()
            dist.all_reduce(mean)

    def one_micro(step: int, micro: int) -> torch.Tensor:
        data.delay_s = 0.0 if micro else plan.delay_s("data", step)
        x = next(training.batches)
        if not micro:
            between(step)
        set_device_speed(net, options, plan, step, micro)
        with nullcontext() if synced(step) else model.no_sync():
            return training.train(x)

    def between(step: int) -> None:
        time.sleep(plan.delay_s("host", step))
        checkpoint_s = plan.delay_s("checkpoint", step) if step else 0.0
        if checkpoint_s:
            torch.save({"step": step}, SlowDisk(checkpoint_s))

    def synced(step: int) -> bool:
        return not block or (step // block) % 2 == 0

    for step in range(options.steps):
        began = time.perf_counter()
        with marked():
            one(step)
        if block and step % block > 1:
            took[synced(step)].append(time.perf_counter() - began)

    if block and plan.rank == 0:
        synced_ms = sum(took[True]) / len(took[True]) * 1e3
        alone_ms = sum(took[False]) / len(took[False]) * 1e3
        print(f"TRUTH exposed_ms {synced_ms - alone_ms:.3f}", flush=True)


if __name__ == "__main__":
    main()
