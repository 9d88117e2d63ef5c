"""What `diag run` was asked for, checked as far as that needs no knowledge of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diag.errors import UsageError

DeviceChoice = Literal["auto", "cuda", "cpu"]
Tee = Literal["0", "all", "none"]


@dataclass(frozen=True)
class RunOptions:
    """The options of `diag run`; None means the user did not say."""

    target: str  # a script's path, or a module's name
    args: tuple[str, ...] = ()
    module: bool = False
    gpus: int | None = None  # ranks on this node
    device: DeviceChoice = "auto"
    name: str | None = None
    runs_dir: Path = Path("diag-runs")
    threads: int | None = None  # per rank
    max_steps: int | None = None
    baseline_steps: int | None = None
    probes: bool = True
    samples_per_step: int | None = None
    tee: Tee = "0"
    nnodes: int = 1
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    max_restarts: int = 0


_AT_LEAST = {
    "gpus": ("--gpus", 1),
    "threads": ("--threads", 1),
    "max_steps": ("--max-steps", 1),
    "baseline_steps": ("--with-baseline", 1),
    "samples_per_step": ("--samples-per-step", 1),
    "nnodes": ("--nnodes", 1),
    "node_rank": ("--node-rank", 0),
    "max_restarts": ("--max-restarts", 0),
}


def check_numbers(options: RunOptions) -> None:
    """Refuse counts that cannot be counts.

    Raises:
        UsageError: `bad-number`, with the option and the value.
    """
    for field, (flag, least) in _AT_LEAST.items():
        check_at_least(flag, getattr(options, field), least)


def check_at_least(flag: str, value: int | None, least: int) -> None:
    """Refuse a count below `least`; None was not given.

    Raises:
        UsageError: `bad-number`, with the option and the value.
    """
    if value is not None and value < least:
        raise UsageError("bad-number", f"{flag} {value}: it must be {least} or more")
