"""The host: cores, memory, file systems, limits, clock, Python."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path

from diag.doctor.facts import Clock, Cpu, FileSystem, Limits, Memory, Python
from diag.doctor.facts_cgroup import cpu_quota, memory_limit

_CLOCK_READINGS = 5  # rounds
_CLOCK_CALLS = 2_000  # calls per round


def read_cpu() -> Cpu:
    return Cpu(os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota())


def read_memory(root: Path = Path("/")) -> Memory:
    lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}
    limit, used = memory_limit(root) or (None, None)
    return Memory(kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024, limit, used)


def read_file_system(path: Path) -> FileSystem:
    """Of `path`, or where it would be created. May block on a dead network mount."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    return FileSystem(
        path=str(path.absolute()),
        size_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        writable=os.access(place, os.W_OK | os.X_OK) and not status.f_flag & os.ST_RDONLY,
    )


def read_limits() -> Limits:
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return Limits(soft, hard)


def read_clock(root: Path = Path("/")) -> Clock:
    name = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    source = name.read_text(encoding="utf-8").strip() if name.is_file() else None
    return Clock(source, statistics.median(_time_reading() for _ in range(_CLOCK_READINGS)))


def _time_reading() -> float:
    """Nanoseconds of one `time.monotonic_ns()`, the loop around it included."""
    start = time.perf_counter_ns()
    for _ in range(_CLOCK_CALLS):
        time.monotonic_ns()
    return (time.perf_counter_ns() - start) / _CLOCK_CALLS


def read_python() -> Python:
    beside = str(Path(sys.executable).parent)  # a virtual environment need not be on PATH
    search = os.pathsep.join([beside, os.environ.get("PATH", "")])
    py_spy = shutil.which("py-spy", path=search)
    return Python(tuple(sys.version_info[:3]), sys.executable, py_spy)
