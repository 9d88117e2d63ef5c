"""A rank's facts: what it is and what it trains, for rank.json."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from diag.probes.roots import live_modules, trainable_roots
from diag.probes.torch_seams import is_fsdp


def process_start_ns() -> int | None:
    """CLOCK_MONOTONIC at which this process began; None where /proc does not say.

    /proc/self/stat counts in ticks since boot, which includes suspends; CLOCK_BOOTTIME ties
    the two clocks together.
    """
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    started_boot = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return started_boot - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())


def model_facts(device: str, wrapped_by_ddp: bool) -> dict[str, Any]:
    """Strategy, precision and size of what is being trained, once the first step is reached."""
    modules = live_modules()
    roots = trainable_roots(modules)
    parameters = {id(p): p for root in roots for p in root.parameters() if p.requires_grad}
    sharded = any(is_fsdp(m) for m in modules)
    strategy = "fsdp" if sharded else "ddp" if wrapped_by_ddp else "none"
    return {
        "strategy": strategy,
        "num_parameters": sum(p.numel() for p in parameters.values()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters.values()),
        "precision": precision([p.dtype for p in parameters.values()], device),
    }


def precision(dtypes: list[torch.dtype], device: str) -> str:
    """The parameters' commonest dtype."""
    if not dtypes:
        return "unknown"
    return str(max(set(dtypes), key=dtypes.count)).removeprefix("torch.")


def autocast_suffix(device: str) -> str:
    """ "-autocast-bfloat16" inside an autocast region, else nothing."""
    if not torch.is_autocast_enabled(device):
        return ""
    return "-autocast-" + str(torch.get_autocast_dtype(device)).removeprefix("torch.")
