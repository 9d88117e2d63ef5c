"""GPUs: what the driver says through NVML, and what the operating system shows without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diag.doctor.facts import Gpu, GpuProcess, NvidiaTraces, Nvml
from diag.doctor.sources import Absent, Failed

_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers
_PRESENCE = ("nvidiactl", "dxg")  # the driver's control file; WSL's
# An old driver or model, or an unprivileged user: no answer, but nothing is broken.
_HARMLESS = ("NVMLError_NotSupported", "NVMLError_NoPermission", "NVMLError_FunctionNotFound")


class _Asking:
    """NVML calls that may fail one by one; each failure is kept, none stops the rest."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def __call__(self, function: Callable[..., Any], *args: Any, label: str = "") -> Any:
        name = getattr(function, "__name__", "NVML")
        try:
            return function(*args)
        except Exception as error:  # any: a foreign binding over a driver that may be broken
            if type(error).__name__ not in _HARMLESS:
                self.failures.append(f"{name}({label}): {error}")
            return None


def read_nvml(api: Any = None) -> Nvml:
    """The driver's answers; `api` is pynvml or something with the same functions.

    Raises:
        Absent: no NVML library, or no driver loaded.
        Failed: the library is there but cannot start (its version is not the driver's …).
    """
    api = api or _pynvml()
    try:
        api.nvmlInit()
    except (api.NVMLError_LibraryNotFound, api.NVMLError_DriverNotLoaded) as error:
        raise Absent(str(error)) from error
    except Exception as error:  # any: see _Asking
        raise Failed(f"nvmlInit: {error}") from error
    ask = _Asking()
    driver = ask(api.nvmlSystemGetDriverVersion)
    cuda = ask(api.nvmlSystemGetCudaDriverVersion_v2)
    count = ask(api.nvmlDeviceGetCount)
    gpus = tuple(_read_gpu(api, ask, i) for i in range(count or 0))
    return Nvml(_text(driver), _cuda_version(cuda), count, gpus, tuple(ask.failures))


def _pynvml() -> Any:
    import pynvml  # here: only a child process that asks the driver needs it

    return pynvml


def _read_gpu(api: Any, ask: _Asking, index: int) -> Gpu:
    label = str(index)
    handle = ask(api.nvmlDeviceGetHandleByIndex, index, label=label)
    if handle is None:
        return Gpu(index, None, None, None, None, None, None, None, None)

    def get(function: Callable[..., Any]) -> Any:
        return ask(function, handle, label=label)

    memory = get(api.nvmlDeviceGetMemoryInfo)
    capability = get(api.nvmlDeviceGetCudaComputeCapability)
    mig = get(api.nvmlDeviceGetMigMode)
    return Gpu(
        index=index,
        name=_text(get(api.nvmlDeviceGetName)),
        uuid=_text(get(api.nvmlDeviceGetUUID)),
        capability=None if capability is None else tuple(capability),
        memory_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        mig=None if mig is None else bool(mig[0]),
        compute_mode=get(api.nvmlDeviceGetComputeMode),
        processes=_read_processes(api, ask, handle, label),
    )


def _read_processes(
    api: Any, ask: _Asking, handle: Any, label: str
) -> tuple[GpuProcess, ...] | None:
    running = ask(api.nvmlDeviceGetComputeRunningProcesses, handle, label=label)
    if running is None:
        return None
    return tuple(
        GpuProcess(
            pid=int(p.pid),
            used_bytes=None if p.usedGpuMemory is None else int(p.usedGpuMemory),
            name=_process_name(int(p.pid)),
        )
        for p in running
    )


def _process_name(pid: int, proc: Path = Path("/proc")) -> str | None:
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8").strip()
    except OSError:  # another container's process, or one that has just ended
        return None


def _cuda_version(number: int | None) -> tuple[int, ...] | None:
    """NVML's 12040 is CUDA 12.4."""
    return None if number is None else (number // 1000, number % 1000 // 10)


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_traces(root: Path = Path("/")) -> NvidiaTraces:
    version = root / "proc/driver/nvidia/version"
    return NvidiaTraces(
        pci_gpus=tuple(_pci_gpus(root / "sys/bus/pci/devices")),
        kernel_driver=version.read_text().splitlines()[0] if version.is_file() else None,
        device_files=_device_files(root),
        infiniband=_names(root / "sys/class/infiniband"),
        container=_container(root),
    )


def has_driver(root: Path = Path("/")) -> bool:
    """A cheap look: can CUDA be there at all?"""
    return any((root / "dev" / name).exists() for name in _PRESENCE)


def _pci_gpus(devices: Path) -> list[str]:
    return [
        name
        for name in _names(devices)
        if _line(devices / name / "vendor") == _NVIDIA
        and _line(devices / name / "class")[:6] in _DISPLAY_CLASSES
    ]


def _device_files(root: Path) -> tuple[str, ...]:
    names = _names(root / "dev")
    return tuple(
        n for n in names if n in _PRESENCE or (n.startswith("nvidia") and n[6:].isdecimal())
    )


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    return "kubernetes" if (root / "var/run/secrets/kubernetes.io").exists() else None


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ()


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
