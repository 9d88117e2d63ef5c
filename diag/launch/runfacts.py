"""run.json: what the launcher knows about a run. The fields are listed in diag.record.schema."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import diag
from diag.launch.environ import is_switched_off, kept_environ, redact
from diag.launch.options import RunOptions
from diag.launch.outcome import Outcome
from diag.launch.plan import LaunchPlan
from diag.launch.target import Target
from diag.record.schema import SCHEMA_MAJOR, SCHEMA_MINOR

Role = Literal["run", "baseline"]
# What a run's speed may depend on, beside torch and Python.
_PACKAGES = (
    "torch",
    "numpy",
    "accelerate",
    "transformers",
    "lightning",
    "triton",
    "nvidia-nccl-cu12",
)


def facts_at_start(
    options: RunOptions,
    plan: LaunchPlan,
    target: Target,
    *,
    name: str,
    role: Role,
    argv: list[str],
    environ: Mapping[str, str],
    started_ns: int,
) -> dict[str, Any]:
    """run.json before the ranks start. `started_ns`: monotonic, when the command began."""
    return {
        "schema": {"major": SCHEMA_MAJOR, "minor": SCHEMA_MINOR},
        "name": name,
        "role": role,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": redact(argv),
        "script": str(target.path) if target.path else target.name,
        "script_sha256": target.sha256,
        "script_args": redact(list(options.args)),
        "module": target.name if target.module else None,
        "mode": "attach",
        "device": plan.device,
        "device_name": plan.device_name,
        "rehearsal": plan.rehearsal,
        "backend": plan.backend,
        "world_size": plan.world_size,
        "nnodes": plan.nnodes,
        "nproc_per_node": plan.nproc,
        "threads": plan.threads,
        "cores": plan.cores,
        "max_steps": options.max_steps,
        "max_restarts": plan.max_restarts,
        "probes": options.probes and not is_switched_off(environ),
        "samples_per_step": options.samples_per_step,
        "versions": _versions(),
        "env": kept_environ({**environ, **plan.env}),
        "restarts": 0,
        "started_ns": started_ns,
        "launch_ns": None,
        "ended_ns": None,
        "ended_by": None,
        "exit_code": None,
        "launcher_pid": os.getpid(),
    }


def facts_at_end(
    ended_by: str, exit_code: int, launch_ns: int | None, outcomes: Iterable[Outcome]
) -> dict[str, Any]:
    """The fields of run.json that only the end can tell."""
    return {
        "ended_by": ended_by,
        "exit_code": exit_code,
        "launch_ns": launch_ns,
        "ended_ns": time.monotonic_ns(),
        "restarts": max((outcome.restart for outcome in outcomes), default=0),
    }


def _versions() -> dict[str, str]:
    found = {"diag": diag.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> list[str]:
    """The command as the user would type it again."""
    return ["diag", *sys.argv[1:]]
