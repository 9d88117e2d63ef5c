"""What is known about a machine: plain values, no judgement. Read by the checks, kept as JSON.

Sizes are bytes, times seconds unless the name says otherwise. A value that could not be
read is None; a whole source that gave nothing is `Missing`, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Missing:
    """A source that gave nothing.

    ``absent``: the thing is not there (no driver, no torch). ``failed``: it is there and
    answered with an error. ``timeout``: no answer within the source's limit.
    """

    missing: Literal["absent", "failed", "timeout"]
    why: str


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds GPU memory; bytes and name are unknown inside most containers."""

    pid: int
    used_bytes: int | None
    name: str | None


@dataclass(frozen=True)
class Gpu:
    """One physical GPU, as NVML numbers them (PCI order)."""

    index: int
    name: str | None
    uuid: str | None
    capability: tuple[int, ...] | None  # (9, 0)
    memory_bytes: int | None
    memory_used_bytes: int | None
    mig: bool | None  # None: this model has no MIG
    compute_mode: int | None  # NVML_COMPUTEMODE_*: 0 default, 2 prohibited, 3 exclusive process
    processes: tuple[GpuProcess, ...] | None


@dataclass(frozen=True)
class Nvml:
    """The driver's own answers."""

    driver: str | None  # "550.54.15"
    cuda: tuple[int, ...] | None  # the newest CUDA the driver speaks: (12, 4)
    count: int | None
    gpus: tuple[Gpu, ...]
    failures: tuple[str, ...]  # one per NVML call that failed: "nvmlDeviceGetName(2): …"


@dataclass(frozen=True)
class NvidiaTraces:
    """What the operating system shows of NVIDIA hardware, asked without the driver's library."""

    pci_gpus: tuple[str, ...]  # PCI addresses of NVIDIA display controllers
    kernel_driver: str | None  # first line of /proc/driver/nvidia/version
    device_files: tuple[str, ...]  # /dev/nvidia0, /dev/nvidiactl, /dev/dxg …
    infiniband: tuple[str, ...]  # /sys/class/infiniband
    container: str | None  # "docker", "podman", "kubernetes", or None


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch, read from its files without importing it."""

    version: str
    cuda: str | None  # "12.6"; None: a build without CUDA
    hip: str | None
    path: str


@dataclass(frozen=True)
class TorchRuntime:
    """What torch says once loaded, in a process of its own."""

    imported: bool  # False: only its native libraries were loaded (nothing else to learn)
    error: str | None  # why loading failed
    seconds: float
    cuda_available: bool | None
    cuda_error: str | None  # what torch gives as the reason
    device_count: int | None
    arch_list: tuple[str, ...] | None  # ("sm_80", "sm_90", "compute_90")
    nccl: tuple[int, ...] | None  # (2, 27, 3)


@dataclass(frozen=True)
class Python:
    version: tuple[int, ...]
    executable: str
    py_spy: str | None  # path of the program


@dataclass(frozen=True)
class Setting:
    """One environment variable, or one line of an NCCL configuration file."""

    name: str
    value: str
    where: str  # "environment" or the file


@dataclass(frozen=True)
class Settings:
    """Settings that reach torch and NCCL. The environment wins over files."""

    entries: tuple[Setting, ...]

    def get(self, name: str) -> Setting | None:
        return next((e for e in self.entries if e.name == name), None)


@dataclass(frozen=True)
class Interface:
    name: str
    up: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    host_name: str
    resolves_to: tuple[str, ...]  # addresses of the host's own name
    resolve_error: str | None
    resolve_seconds: float
    interfaces: tuple[Interface, ...]


@dataclass(frozen=True)
class Cpu:
    """`quota` is the cgroup's limit in cores (2.5); None: no limit."""

    count: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> float:
        """Cores this process may really use."""
        return min(float(self.affinity), self.quota or float(self.affinity))


@dataclass(frozen=True)
class Memory:
    """`limit_bytes` and `limit_used_bytes` are the tightest cgroup's; None: no limit.

    The used bytes leave out file cache that the kernel can drop.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    limit_used_bytes: int | None

    @property
    def usable_bytes(self) -> int:
        """What new processes can still take."""
        if self.limit_bytes is None:
            return self.available_bytes
        free = max(0, self.limit_bytes - (self.limit_used_bytes or 0))
        return min(self.available_bytes, free)


@dataclass(frozen=True)
class FileSystem:
    """The file system that holds `path`, or would: its nearest existing parent."""

    path: str
    size_bytes: int
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Limits:
    """Of this process; None: unlimited."""

    open_files: int | None
    open_files_hard: int | None


@dataclass(frozen=True)
class Clock:
    source: str | None  # "tsc"; None: the kernel does not tell
    read_ns: float  # median time of one reading


@dataclass(frozen=True)
class Tracing:
    """May a process look into another's stack? `read` and `attach` were tried on a child.

    Yama's scope 1 allows a child and forbids other processes.
    """

    yama_scope: int | None  # None: the kernel has no Yama
    cap_sys_ptrace: bool | None
    read: str  # "ok" or the error's name: "EPERM"
    attach: str


@dataclass(frozen=True)
class Facts:
    """One machine at one moment."""

    taken: str  # ISO 8601, UTC
    diag_version: str
    provenance: str  # "collected", or for a recording: where its values come from
    traces: NvidiaTraces | Missing
    nvml: Nvml | Missing
    torch_build: TorchBuild | Missing
    torch: TorchRuntime | Missing
    python: Python | Missing
    settings: Settings | Missing
    network: Network | Missing
    cpu: Cpu | Missing
    memory: Memory | Missing
    shm: FileSystem | Missing
    runs: FileSystem | Missing
    limits: Limits | Missing
    clock: Clock | Missing
    tracing: Tracing | Missing
