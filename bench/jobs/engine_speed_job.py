"""Rank target of bench/engine_speed.py: the same training written three ways, in turn, in one process.

Each way has its own model, optimizer, scheduler and loader, and is only ever trained with its own.
Prints one JSON object on rank 0: seconds per step of every block, by way.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from planted_job import SleepingDevice
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

LAYERS, WIDTH, BATCH, SAMPLES = 8, 256, 4, 4096
MICRO_BATCHES, MAX_NORM = 4, 1.0
GPU_WIDTH, GPU_BATCH = 4096, 512


class Block(nn.Module):
    """On the CPU a device of known speed that needs no core; on a GPU real work."""

    def __init__(self, width: int, forward_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.forward_s = forward_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.linear(x)) + x
        if self.forward_s:
            x = SleepingDevice.apply(x, self.forward_s, 1.5 * self.forward_s)
        return x


class Net(nn.Module):
    def __init__(self, width: int, compute_s: float) -> None:
        super().__init__()
        forward_s = compute_s / 2.5 / LAYERS
        self.blocks = nn.ModuleList(Block(width, forward_s) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Job:
    """What all ways train: model, data, and how a step of theirs is called."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.strategy: str = options.strategy
        self.accumulates: bool = options.loop == "accumulation"
        self.micro_batches = MICRO_BATCHES if self.accumulates else 1
        self.on_gpu: bool = options.device == "cuda"
        self.device = torch.device(f"cuda:{dist.get_rank()}" if self.on_gpu else "cpu")
        self.width = GPU_WIDTH if self.on_gpu else WIDTH
        self.batch = GPU_BATCH if self.on_gpu else BATCH
        # A step computes for as long, however many micro-batches it has.
        self.compute_s = 0.0 if self.on_gpu else options.step_ms / 1e3 / self.micro_batches

    def model(self) -> Net:
        torch.manual_seed(0)
        return Net(self.width, self.compute_s)

    def data(self) -> TensorDataset:
        return TensorDataset(torch.randn(SAMPLES, self.width))

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = model(batch[0]).pow(2).mean()
        return loss


Step = Callable[[], None]


def by_hand(job: Job) -> Step:
    """torch alone, as its tutorials write it."""
    model: Any = job.model().to(job.device)
    if job.strategy == "fsdp":
        mesh = init_device_mesh(job.device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model, [job.device] if job.on_gpu else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    data = job.data()
    batches = _again(DataLoader(data, job.batch, sampler=DistributedSampler(data)))

    def step() -> None:
        for index in range(job.micro_batches):
            last = index == job.micro_batches - 1
            batch = [tensor.to(job.device) for tensor in next(batches)]
            if job.strategy == "fsdp" and job.accumulates:
                model.set_requires_gradient_sync(last)
            waiting = job.strategy == "ddp" and not last
            with model.no_sync() if waiting else nullcontext():
                (job.loss(model, batch) / job.micro_batches).backward()
        if job.accumulates:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def with_engine(job: Job) -> Step:
    from diag import Engine, FSDPOptions

    engine = Engine(
        strategy=job.strategy,
        gradient_accumulation_steps=job.micro_batches,
        fsdp=FSDPOptions(wrap_classes=("Block",)),
        cpu=not job.on_gpu,
    )
    return _accelerated(job, engine)


def with_accelerate(job: Job) -> Step:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
    )
    accelerator = Accelerator(
        fsdp_plugin=plugin if job.strategy == "fsdp" else None,
        gradient_accumulation_steps=job.micro_batches,
        cpu=not job.on_gpu,
    )
    return _accelerated(job, accelerator)


def _accelerated(job: Job, engine: Any) -> Step:
    """Engine and Accelerator are called alike."""
    model = job.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    loader = DataLoader(job.data(), job.batch, shuffle=True)
    model, optimizer, loader, scheduler = engine.prepare(model, optimizer, loader, scheduler)
    sharded = isinstance(next(model.parameters()), DTensor)
    if sharded != (job.strategy == "fsdp"):
        raise RuntimeError(f"{type(engine).__name__} does not shard the model here")
    batches = _again(loader)

    def plain() -> None:
        engine.backward(job.loss(model, next(batches)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    def accumulating() -> None:
        for _ in range(job.micro_batches):
            with engine.accumulate(model):
                engine.backward(job.loss(model, next(batches)))
                if engine.sync_gradients:
                    engine.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    return accumulating if job.accumulates else plain


def _again(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


WAYS: dict[str, Callable[[Job], Step]] = {
    "hand": by_hand,
    "engine": with_engine,
    "accelerate": with_accelerate,
}


def seconds_per_step(step: Step, steps: int, on_gpu: bool) -> float:
    """On the CPU the median; on a GPU, where the host runs ahead, the mean of the block."""
    if not on_gpu:
        return statistics.median(_timed(step) for _ in range(steps))
    torch.cuda.synchronize()

    def block() -> None:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()

    return _timed(block) / steps


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy")
    parser.add_argument("--loop")
    parser.add_argument("--device")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--step-ms", type=float)
    options = parser.parse_args()
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    job = Job(options)
    if job.on_gpu:
        torch.cuda.set_device(job.device)
    ways: dict[str, Step] = {}
    refused: dict[str, str] = {}
    for name, make in WAYS.items():
        try:
            ways[name] = make(job)
            for _ in range(5):
                ways[name]()
        except Exception as error:
            if name != "accelerate":  # a peer may not do this on this machine; we must
                raise
            ways.pop(name, None)
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(options.blocks):
        for name in order:
            ways[name]()  # the first after another way's finds cold caches
            seconds[name].append(seconds_per_step(ways[name], options.steps, job.on_gpu))
        order = order[1:] + order[:1]  # so that none always follows the same one
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": seconds, "refused": refused}), flush=True)
    ways.clear()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
