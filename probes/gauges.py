"""Slow-moving readings, about once a second, from a daemon thread that never touches torch's streams."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from diag.probes.contain import Failures

INTERVAL_S = 1.0
PAGE = os.sysconf("SC_PAGE_SIZE")


class GaugeSink(Protocol):
    def append_gauge(self, row: tuple[object, ...], /) -> None: ...


def host_memory() -> tuple[int, int]:
    """(resident bytes now, peak resident bytes) of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * PAGE
    import resource

    return resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def runqueue_wait_ns() -> int | None:
    """Cumulative time the main thread was runnable but had no core; None where unreadable.

    Source: the second field of /proc/<pid>/schedstat (Documentation/scheduler/sched-stats.rst).
    """
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None


class NoGpu:
    """The reading of a rank on CPU: no device memory, no device gauges."""

    def read(self) -> tuple[int | None, ...]:
        return (None, None, None)

    def sensors(self) -> tuple[float | None, ...]:
        return (None, None, None, None, None)


class CudaGpu:
    """Torch's allocator and NVML, for this rank's device.

    Args:
        cuda: the module ``torch.cuda``.
        device: the device's number as torch counts.
        nvml: the module ``pynvml``, initialised, with `handle`; None without NVML.
    """

    def __init__(self, cuda: Any, device: int, nvml: Any, handle: Any) -> None:
        self.cuda = cuda
        self.device = device
        self.nvml = nvml
        self.handle = handle

    def read(self) -> tuple[int | None, ...]:
        stats = self.cuda.memory_stats(self.device)
        return (
            stats.get("allocated_bytes.all.current"),
            stats.get("reserved_bytes.all.current"),
            stats.get("allocated_bytes.all.peak"),
        )

    def sensors(self) -> tuple[float | None, ...]:
        """(utilisation 0..1, SM clock MHz, power W, temperature °C, throttle reasons)"""
        nvml, handle = self.nvml, self.handle
        if nvml is None:
            return (None, None, None, None, None)
        return (
            _tried(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            _tried(lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            _tried(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            _tried(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            _tried(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        )


def _tried(read: Callable[[], Any]) -> Any:
    """A sensor a card does not have is a missing value, not a failure."""
    try:
        return read()
    except Exception:
        return None


def cuda_gpu(device: int) -> CudaGpu:
    """A device torch uses, found in NVML by its UUID (CUDA_VISIBLE_DEVICES reorders numbers)."""
    import torch

    nvml, handle = None, None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        nvml = pynvml
    except Exception:  # NVML is optional: its readings stay empty
        nvml = None
    return CudaGpu(torch.cuda, device, nvml, handle)


def sample(gpu: NoGpu | CudaGpu) -> tuple[object, ...]:
    """One row of the gauges stream."""
    resident, peak_resident = host_memory()
    allocated, reserved, peak = gpu.read()
    utilisation, clock, power, temperature, throttle = gpu.sensors()
    return (
        time.monotonic_ns(),
        allocated,
        reserved,
        peak if peak is not None else peak_resident,
        resident,
        utilisation,
        clock,
        power,
        temperature,
        throttle,
        runqueue_wait_ns(),
        time.process_time_ns(),
    )


class Pulse:
    """The thread that calls each of `jobs` once a second until stopped."""

    def __init__(self, jobs: list[Callable[[], None]], failures: Failures) -> None:
        self._jobs = [failures.contained(f"pulse {job.__name__}", job) for job in jobs]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diag-pulse", daemon=True)
        self.cost_ns = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            started = time.thread_time_ns()
            for job in self._jobs:
                job()
            self.cost_ns += time.thread_time_ns() - started
