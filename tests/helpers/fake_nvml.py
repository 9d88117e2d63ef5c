"""A stand-in for pynvml: the functions that the doctor calls, over GPUs stated by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1 << 30


@dataclass
class FakeGpu:
    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-0"
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    used: int = GIB // 2
    mig: int | None = 0
    compute_mode: int = 0
    processes: tuple[tuple[int, int | None], ...] = ()


@dataclass
class FakeNvml:
    """`broken`: function name → NVML error code; "*" stands for all but nvmlInit."""

    gpus: list[FakeGpu] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    lost: frozenset[int] = frozenset()  # GPUs whose handle cannot be had

    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args: Any) -> Any:
            code = self.broken.get(name, None if name == "nvmlInit" else self.broken.get("*"))
            if code is not None:
                raise pynvml.NVMLError(code)
            return getattr(self, f"_{name}")(*args)

        call.__name__ = name
        return call

    def _nvmlInit(self) -> None:
        pass

    def _nvmlSystemGetDriverVersion(self) -> str:
        return "550.54.15"

    def _nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12040

    def _nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if index in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def _nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def _nvmlDeviceGetUUID(self, gpu: FakeGpu) -> bytes:
        return gpu.uuid.encode()  # older bindings answer in bytes

    def _nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(total=gpu.total, used=gpu.used)

    def _nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return gpu.capability

    def _nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [gpu.mig, gpu.mig]

    def _nvmlDeviceGetComputeMode(self, gpu: FakeGpu) -> int:
        return gpu.compute_mode

    def _nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=p, usedGpuMemory=used) for p, used in gpu.processes]
