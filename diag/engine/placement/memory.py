"""How much memory a rank may still take."""

from __future__ import annotations

import torch
import torch.distributed as dist

from diag.engine.amounts import free_on_host
from diag.engine.process import Process


def free_bytes(process: Process) -> int:
    """Bytes free to each rank on its device, the least over the ranks. Collective with several.

    On the CPU: the host's (or the container's) available memory, shared by the node's ranks.
    """
    if process.device.type == "cuda":
        free = _free_on_gpu(process.device)
    else:
        free = free_on_host() // process.local_world_size
    if not process.distributed:
        return free
    least = torch.tensor(free, device=process.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _free_on_gpu(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator holds without a tensor in it can be given out again.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
