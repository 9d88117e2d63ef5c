"""Which process of the job this is, and the device and backend it trains with."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from diag.errors import DiagError


@dataclass(frozen=True)
class Process:
    """One process's place in the job.

    Attributes:
        rank, local_rank: its number over all nodes, and on its own node.
        world_size, local_world_size: how many there are, and how many on this node.
        device: where its model and batches live.
        backend: "nccl", "gloo" …; None for a single process that joined no group.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    backend: str | None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        return self.local_rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.world_size - 1

    @property
    def distributed(self) -> bool:
        return self.world_size > 1


def join_job(cpu: bool = False) -> Process:
    """Join the job the launcher describes in the environment; without one, stand alone.

    A process group the script has already made is used as it is; without a launcher's variables
    its ranks are taken for one node's. Idempotent.

    Args:
        cpu: train on the CPU even where GPUs are present.

    Raises:
        DiagError: the launcher gave this node more ranks than it has GPUs.
    """
    local_rank = _local_rank()
    device = _device(local_rank, cpu)
    if not dist.is_initialized():
        if _number("WORLD_SIZE", 1) == 1:
            return Process(0, 0, 1, 1, device, None)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world_size = dist.get_world_size()
    local_world_size = _number("LOCAL_WORLD_SIZE", world_size)
    return Process(
        dist.get_rank(), local_rank, world_size, local_world_size, device, dist.get_backend()
    )


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are; needs neither an Engine nor a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return _number("RANK", 0), _number("WORLD_SIZE", 1)


def _local_rank() -> int:
    if not dist.is_initialized():
        return _number("LOCAL_RANK", 0)
    per_node = _number("LOCAL_WORLD_SIZE", dist.get_world_size())
    return _number("LOCAL_RANK", dist.get_rank() % per_node)


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable) or default)


def _device(local_rank: int, cpu: bool) -> torch.device:
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    present = torch.cuda.device_count()
    if local_rank >= present:
        raise DiagError(
            "too-few-gpus",
            f"This node runs rank {local_rank} of its ranks but has {present} GPU(s).",
            hint=f"Start at most {present} rank(s) here: diag run --gpus {present} …",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
