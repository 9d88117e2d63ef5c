"""The one catalogue of codes: every finding, rule, check and hang code diag can name.

A code is stable: scripts and people rely on it. Each has a page in docs/codes/: what it
means, how it is seen, known limits, the remedy, how to silence it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["speed", "correctness", "hang", "check"]


@dataclass(frozen=True)
class Code:
    """One entry of the catalogue."""

    code: str
    kind: Kind
    title: str
    severity_rule: str  # in words: when it is info, warning, critical

    @property
    def docs(self) -> str:
        """The page, relative to the project's root."""
        return f"docs/codes/{self.code}.md"


_BY_SHARE = "info from 1% of the step, warning from 5%, critical from 15%"

_SPEED = (
    Code("slow-rank", "speed", "One or more ranks are slower than the rest", _BY_SHARE),
    Code("jitter", "speed", "A different rank is late in each step", _BY_SHARE),
    Code("data-bound", "speed", "All ranks wait for their data loaders", _BY_SHARE),
    Code("comm-bound", "speed", "Communication that no compute hides", _BY_SHARE),
    Code("rank0-work", "speed", "One rank works while the others wait", _BY_SHARE),
    Code("short-run", "speed", "Too few steady steps to judge", "info"),
    Code("small-batch", "speed", "Per-rank batches too small for the optimizer step", _BY_SHARE),
    Code("cpu-oversubscribed", "speed", "Ranks wait for a core to work on", _BY_SHARE),
    Code(
        "unsupported-topology",
        "speed",
        "Gradients are reduced over strict subgroups of the ranks",
        "info",
    ),
)

# `diag doctor`: warn costs speed or evidence, fail stops training or makes it meaningless.
_CHECKS = (
    Code("python-version", "check", "Is this Python supported?", "fail: older than 3.11"),
    Code("torch-version", "check", "Is torch installed, whole and supported?", "fail"),
    Code("torch-build", "check", "Is torch built for this machine?", "fail: CPU-only on GPUs"),
    Code("torch-cuda", "check", "Can torch use CUDA?", "fail"),
    Code("gpu-driver", "check", "Does the NVIDIA driver answer?", "fail"),
    Code("driver-cuda", "check", "Is the driver new enough for torch's CUDA?", "fail"),
    Code("gpus-visible", "check", "Are all the GPUs visible?", "warn; fail: too few for --gpus"),
    Code("gpu-arch", "check", "Has torch kernels for these GPUs?", "warn: from PTX; fail: none"),
    Code("gpu-models", "check", "Are the GPUs alike?", "warn"),
    Code("gpu-busy", "check", "Are the GPUs free?", "warn"),
    Code("gpu-mig", "check", "Is a GPU split into MIG slices?", "warn"),
    Code("gpu-compute-mode", "check", "Do the GPUs accept work?", "fail"),
    Code("nccl-version", "check", "Has this NCCL a known fault?", "warn"),
    Code("nccl-transport-off", "check", "Is a transport of NCCL switched off?", "warn"),
    Code("nccl-debug", "check", "Is NCCL's debug output on?", "warn"),
    Code("nccl-blocking-wait", "check", "Do collectives block the host?", "warn"),
    Code("socket-interface", "check", "Do the prescribed interfaces exist?", "fail"),
    Code("host-name", "check", "Does the host name lead to this host?", "warn"),
    Code("debug-settings", "check", "Are debug settings of torch left on?", "warn"),
    Code("cpu-cores", "check", "Are there cores for the ranks?", "warn on CPU, fail with GPUs"),
    Code("cpu-threads", "check", "Do the ranks' threads fit the cores?", "warn"),
    Code("host-memory", "check", "Is there memory for the ranks?", "warn; fail below 0.5 GiB each"),
    Code("shm-size", "check", "Is /dev/shm large enough?", "warn below 1 GiB, fail to 64 MiB"),
    Code("open-files", "check", "May a process open enough files?", "warn"),
    Code("runs-disk", "check", "Can runs be recorded?", "warn: little room; fail: none"),
    Code("clock-source", "check", "Is reading the clock cheap?", "warn"),
    Code("trace-permission", "check", "Can a hung rank be looked into?", "warn"),
)

# `diag hang` and the watcher of a run. Proven: the run is ended at once; suspected: it may only be
# slow, and is left alone until --hang-timeout.
_HANGS = (
    Code("hang-dead-rank", "hang", "A rank is gone, and others wait for it", "proven"),
    Code("hang-missing-rank", "hang", "A rank does not come, it is busy elsewhere", "suspected"),
    Code("hang-mismatched-collective", "hang", "Ranks are in different collectives", "proven"),
    Code("hang-uneven-inputs", "hang", "A rank had fewer batches than the others", "proven"),
    Code("hang-stopped-rank", "hang", "A rank's process is stopped", "suspected"),
    Code(
        "hang-native-stuck",
        "hang",
        "A rank is stuck in native code, the kernel or its GPU",
        "suspected",
    ),
    Code(
        "hang-network", "hang", "All ranks entered a collective that does not complete", "suspected"
    ),
)

CATALOGUE: dict[str, Code] = {c.code: c for c in (*_SPEED, *_CHECKS, *_HANGS)}
