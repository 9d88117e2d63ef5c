"""Where and when a figure was measured, and how much of the machine there was to measure with."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import psutil


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


class Stolen:
    """The share of all cores' time that a hypervisor gave to others since this was made.

    A virtual machine cannot be quieter than its host: what is measured while time is stolen says
    nothing. Source: the "steal" column of /proc/stat (proc_stat(5)).
    """

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def share(self) -> float:
        now = psutil.cpu_times()
        # guest times are part of user and nice already
        fields = [f for f in now._fields if not f.startswith("guest")]
        total = sum(getattr(now, f) - getattr(self._before, f) for f in fields)
        stolen = getattr(now, "steal", 0.0) - getattr(self._before, "steal", 0.0)
        return stolen / total if total > 0 else 0.0
