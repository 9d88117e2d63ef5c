"""NVML by a fake driver, and what the operating system shows of GPUs by a made-up tree."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from diag.doctor.facts import GpuProcess, NvidiaTraces
from diag.doctor.facts_gpu import has_driver, read_nvml, read_traces
from diag.doctor.sources import Absent, Failed
from helpers.fake_nvml import FakeGpu, FakeNvml

GIB = 1 << 30


def test_what_a_healthy_driver_says() -> None:
    nvml = read_nvml(FakeNvml([FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b", mig=1)]))
    assert (nvml.driver, nvml.cuda, nvml.count, nvml.failures) == ("550.54.15", (12, 4), 2, ())
    first, second = nvml.gpus
    assert (first.name, first.uuid, first.capability) == ("NVIDIA H100 80GB HBM3", "GPU-a", (9, 0))
    assert (first.memory_bytes, first.memory_used_bytes) == (80 * GIB, GIB // 2)
    assert (first.mig, second.mig) == (False, True)


def test_processes_whose_memory_or_name_is_hidden() -> None:
    gpu = FakeGpu(processes=((1, 2 * GIB), (999_999_999, None)))
    (one, hidden) = read_nvml(FakeNvml([gpu])).gpus[0].processes or ()
    assert (one.pid, one.used_bytes) == (1, 2 * GIB)
    assert hidden == GpuProcess(999_999_999, None, None)


def test_what_a_model_does_not_have_is_no_failure() -> None:
    nvml = read_nvml(FakeNvml([FakeGpu(mig=None)]))
    assert nvml.gpus[0].mig is None
    assert nvml.failures == ()


@pytest.mark.parametrize(
    "harmless", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND]
)
def test_an_old_driver_or_a_plain_user_is_no_failure(harmless: int) -> None:
    nvml = read_nvml(FakeNvml([FakeGpu()], broken={"nvmlDeviceGetComputeMode": harmless}))
    assert nvml.gpus[0].compute_mode is None
    assert nvml.failures == ()


def test_every_call_failing_is_recorded_and_nothing_is_raised() -> None:
    nvml = read_nvml(FakeNvml([FakeGpu()], broken={"*": pynvml.NVML_ERROR_UNKNOWN}))
    assert (nvml.driver, nvml.cuda, nvml.count, nvml.gpus) == (None, None, None, ())
    assert nvml.failures[0] == "nvmlSystemGetDriverVersion(): Unknown Error"
    assert len(nvml.failures) == 3


def test_a_gpu_lost_in_the_middle_leaves_the_others() -> None:
    nvml = read_nvml(FakeNvml([FakeGpu(), FakeGpu(), FakeGpu()], lost=frozenset({1})))
    assert [g.name is None for g in nvml.gpus] == [False, True, False]
    assert nvml.failures == ("nvmlDeviceGetHandleByIndex(1): GPU is lost",)


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, Absent),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, Absent),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, Failed),
        (pynvml.NVML_ERROR_UNKNOWN, Failed),
    ],
)
def test_absent_is_told_from_broken(code: int, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        read_nvml(FakeNvml(broken={"nvmlInit": code}))


def pci(root: Path, address: str, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


def test_traces(tmp_path: Path) -> None:
    pci(tmp_path, "0000:1b:00.0", "0x10de", "0x030200")
    pci(tmp_path, "0000:1b:00.1", "0x10de", "0x040300")  # the card's audio
    pci(tmp_path, "0000:00:02.0", "0x8086", "0x030000")  # Intel graphics
    for name in ("nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        path = tmp_path / "dev" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    (tmp_path / ".dockerenv").touch()
    assert read_traces(tmp_path) == NvidiaTraces(
        pci_gpus=("0000:1b:00.0",),
        kernel_driver=None,
        device_files=("nvidia0", "nvidia10", "nvidiactl"),
        infiniband=("mlx5_0",),
        container="docker",
    )
    assert has_driver(tmp_path)


def test_no_traces(tmp_path: Path) -> None:
    assert read_traces(tmp_path) == NvidiaTraces((), None, (), (), None)
    assert not has_driver(tmp_path)
