"""Gauges: a row in the schema's order on CPU, on a GPU, and on one whose sensors fail."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from diag.probes.contain import Failures
from diag.probes.gauges import CudaGpu, NoGpu, Pulse, sample
from diag.record.schema import GAUGES


class Cuda:
    def memory_stats(self, device: int) -> dict[str, int]:
        assert device == 1
        return {
            "allocated_bytes.all.current": 10,
            "reserved_bytes.all.current": 20,
            "allocated_bytes.all.peak": 30,
        }


class Nvml:
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 412_000

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int) -> int:
        raise RuntimeError("not supported")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return 4


def row(gpu: Any) -> dict[str, Any]:
    return dict(zip(GAUGES.names, sample(gpu), strict=True))


def test_on_cpu_memory_is_the_process_and_devices_are_missing() -> None:
    seen = row(NoGpu())
    assert seen["rss_bytes"] > 2**20
    assert seen["peak_bytes"] >= seen["rss_bytes"] * 0.5
    assert seen["allocated_bytes"] is seen["gpu_utilisation"] is None
    assert seen["cpu_ns"] > 0


def test_on_a_gpu_memory_is_torchs_and_a_failing_sensor_is_missing() -> None:
    seen = row(CudaGpu(Cuda(), 1, Nvml(), None))
    assert (seen["allocated_bytes"], seen["reserved_bytes"], seen["peak_bytes"]) == (10, 20, 30)
    assert seen["gpu_utilisation"] == 0.87
    assert seen["sm_clock_mhz"] == 1980.0
    assert seen["power_w"] == 412.0
    assert seen["temperature_c"] is None
    assert seen["throttle_reasons"] == 4


def test_without_nvml_the_sensors_are_missing() -> None:
    seen = row(CudaGpu(Cuda(), 1, None, None))
    assert seen["sm_clock_mhz"] is None
    assert seen["allocated_bytes"] == 10


def test_the_pulse_contains_its_jobs_and_stops(monkeypatch: Any) -> None:
    monkeypatch.setattr("diag.probes.gauges.INTERVAL_S", 0.001)
    beaten = threading.Event()

    def broken() -> None:
        beaten.set()
        raise OSError("planted")

    failures = Failures()
    pulse = Pulse([broken], failures)
    pulse.start()
    assert beaten.wait(5)
    pulse.stop()
    assert failures.counts["pulse broken"] >= 1
