"""One line that says where and when a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """Date, cores, processor, kernel, Python and torch."""
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.date.today().isoformat()}, {cores} cores ({processor()}), "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"torch {version('torch')}"
    )
