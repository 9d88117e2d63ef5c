"""What this machine offers to ranks: GPUs, driver, cores. Torch is not imported for it.

`collect` looks; everything else is a pure function over what it saw, so that tests can state
a machine literally.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path("/")
# NVML's "not here at all", as opposed to "here and broken"; see nvml.h, nvmlReturn_t.
_NVML_DRIVER_NOT_LOADED = 9
_NVML_LIBRARY_NOT_FOUND = 12


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML lists it, in PCI order; memory in bytes."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Hardware:
    """The facts a plan is made from.

    Attributes:
        gpus: all GPUs of the machine, or () where NVML does not answer.
        driver: traces of an NVIDIA driver, each a short phrase; () on a machine without.
        nvml_error: why NVML did not answer, None when it did or is simply absent.
        visible_devices: CUDA_VISIBLE_DEVICES as set, None when unset.
        cores: CPU cores this process may use (affinity and cgroup quota).
        torch_cuda: CUDA version torch was built for; "" for a CPU build, None if unknown.
        cpu_name: the processor's model, "" where unknown.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: tuple[str, ...] = ()
    nvml_error: str | None = None
    visible_devices: str | None = None
    cores: int = 1
    torch_cuda: str | None = None
    cpu_name: str = ""

    @property
    def visible(self) -> tuple[str, ...]:
        """The names of the GPUs that CUDA will show to a rank."""
        return visible_names(self.visible_devices, self.gpus)


def visible_names(value: str | None, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Names of the GPUs left by CUDA_VISIBLE_DEVICES=`value`.

    CUDA reads entries (an index, or a UUID's beginning) up to the first invalid one:
    CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if value is None:
        return tuple(gpu.name for gpu in gpus)
    names: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        name = _named_by(entry, gpus)
        if name is None:
            break
        names.append(name)
    return tuple(names)


def _named_by(entry: str, gpus: tuple[Gpu, ...]) -> str | None:
    if entry.isdecimal():
        return gpus[int(entry)].name if int(entry) < len(gpus) else None
    if entry.startswith("MIG-"):  # a slice has a UUID of its own; the whole card's is not in it
        return "MIG slice" if gpus else None
    if entry.startswith("GPU-"):
        matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return matches[0].name if len(matches) == 1 else None
    return None


def collect(root: Path = _ROOT) -> Hardware:
    """Look at this machine. Never raises: what cannot be read is left out."""
    gpus, nvml_error = _ask_nvml()
    return Hardware(
        gpus=gpus,
        driver=_driver_traces(root, nvml_error),
        nvml_error=nvml_error,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cores=available_cores(root),
        torch_cuda=_torch_cuda(),
        cpu_name=_cpu_name(root),
    )


def _ask_nvml() -> tuple[tuple[Gpu, ...], str | None]:
    try:
        import pynvml
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = error.value in (_NVML_DRIVER_NOT_LOADED, _NVML_LIBRARY_NOT_FOUND)
        return (), None if absent else str(error)
    try:
        return tuple(_read_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())), None
    except pynvml.NVMLError as error:
        return (), str(error)
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=_memory(nvml, handle),
    )


def _memory(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # a unified-memory board (Grace, Jetson) has no figure of its own
        return 0


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _driver_traces(root: Path, nvml_error: str | None) -> tuple[str, ...]:
    traces = []
    if (root / "proc/driver/nvidia/version").exists():
        traces.append("the NVIDIA kernel driver is loaded")
    nodes = [p for p in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)]
    if nodes:
        traces.append(f"/dev holds {len(nodes)} NVIDIA device{'s' if len(nodes) > 1 else ''}")
    if nvml_error and "not installed" not in nvml_error:
        traces.append(f"NVML says: {nvml_error}")
    return tuple(traces)


def available_cores(root: Path = _ROOT) -> int:
    """Cores this process may really use: its affinity, cut by a cgroup's CPU quota. At least 1."""
    affinity = len(os.sched_getaffinity(0))
    quotas = (_quota_v1(root), *(_quota_v2(path) for path in _quota_files(root)))
    return max(1, int(min([float(affinity), *(q for q in quotas if q is not None)])))


def _quota_files(root: Path) -> tuple[Path, ...]:
    top = root / "sys/fs/cgroup"
    own = [top / "cpu.max"]
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):  # cgroup v2: every ancestor's limit binds
            here = top / line[4:]
            own += [p / "cpu.max" for p in (here, *here.parents) if top in (p, *p.parents)]
    return tuple(dict.fromkeys(own))


def _quota_v1(root: Path) -> float | None:
    cpu = root / "sys/fs/cgroup/cpu"
    return _ratio(_read(cpu / "cpu.cfs_quota_us"), _read(cpu / "cpu.cfs_period_us"))


def _quota_v2(path: Path) -> float | None:
    quota, _, period = _read(path).strip().partition(" ")
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # no limit ("max", -1), or no such file
    return int(quota) / int(period)


def _torch_cuda(find: Callable[[str], Any] = importlib.util.find_spec) -> str | None:
    # Importing torch takes seconds; its version.py holds the answer as text.
    try:
        spec = find("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    return parse_torch_cuda(_read(Path(spec.origin).with_name("version.py")))


def parse_torch_cuda(version_py: str) -> str | None:
    """CUDA version in torch/version.py's text; "" for a build without, None if it does not say."""
    found = re.search(r"^cuda\b[^=\n]*=\s*(None|'([^']*)'|\"([^\"]*)\")", version_py, re.MULTILINE)
    if found is None:
        return None
    return found[2] or found[3] or ""


def _cpu_name(root: Path) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
