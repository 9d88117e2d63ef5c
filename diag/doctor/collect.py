"""All facts of this machine, each source asked at the same time and within its limit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diag import __version__
from diag.doctor.codec import decode_or_missing
from diag.doctor.facts import Facts, FileSystem, Nvml, TorchRuntime
from diag.doctor.facts_gpu import read_traces
from diag.doctor.facts_host import read_clock, read_cpu, read_limits, read_memory, read_python
from diag.doctor.facts_network import read_network
from diag.doctor.facts_settings import read_settings
from diag.doctor.facts_torch import read_build
from diag.doctor.facts_tracing import read_tracing
from diag.doctor.sources import Source, ask_all, run_child

_SHORT = 2.5  # seconds; together with judging and printing the command stays under 3
_IMPORT = 20.0  # importing a CUDA build of torch from a cold network file system is slow


def sources(runs_dir: Path) -> dict[str, Source]:
    """One source per field of `Facts`."""

    def from_child(kind: type, name: str, seconds: float, *args: str) -> Source:
        # the thread may outlive the child's limit by the time that killing it takes
        return Source(
            lambda: decode_or_missing(kind, run_child(name, seconds, *args)), seconds + 0.5
        )

    return {
        "traces": Source(read_traces, _SHORT),
        "nvml": from_child(Nvml, "nvml", _SHORT),
        "torch_build": Source(read_build, _SHORT),
        "torch": from_child(TorchRuntime, "torch", _IMPORT),
        "python": Source(read_python, _SHORT),
        "settings": Source(read_settings, _SHORT),
        "network": Source(read_network, _SHORT),
        "cpu": Source(read_cpu, _SHORT),
        "memory": Source(read_memory, _SHORT),
        "shm": from_child(FileSystem, "file-system", _SHORT, "/dev/shm"),
        "runs": from_child(FileSystem, "file-system", _SHORT, str(runs_dir)),
        "limits": Source(read_limits, _SHORT),
        "clock": Source(read_clock, _SHORT),
        "tracing": Source(read_tracing, _SHORT),
    }


def collect(runs_dir: Path) -> Facts:
    """Facts about this machine; a source that gives none is `Missing`, never an exception."""
    answers: dict[str, Any] = ask_all(sources(runs_dir))
    return Facts(
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        diag_version=__version__,
        provenance="collected",
        **answers,
    )
