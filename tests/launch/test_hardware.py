"""Facts from files and variables; a machine's /proc, /dev and /sys are small fake trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diag.launch.hardware import (
    Gpu,
    available_cores,
    collect,
    parse_torch_cuda,
    visible_names,
)

GPUS = tuple(Gpu(i, uuid, f"gpu{i}", 0) for i, uuid in enumerate(["GPU-aa1", "GPU-aa2", "GPU-b"]))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ("gpu0", "gpu1", "gpu2")),
        ("", ()),
        ("-1", ()),
        ("1", ("gpu1",)),
        ("2, 0", ("gpu2", "gpu0")),
        ("0,7,1", ("gpu0",)),  # CUDA stops at the first invalid entry
        ("GPU-b,GPU-aa2", ("gpu2", "gpu1")),
        ("GPU-aa", ()),  # ambiguous
        ("MIG-4711", ("MIG slice",)),
        ("NoDevFiles", ()),
    ],
)
def test_cuda_visible_devices(value: str | None, names: tuple[str, ...]) -> None:
    assert visible_names(value, GPUS) == names


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'\nhip = None", "12.8"),
        ("debug = False\ncuda: Optional[str] = None\n", ""),
        ("cuda = '11.8'", "11.8"),
        ('cuda: str | None = "13.0"', "13.0"),
        ("__version__ = '2.9'", None),
    ],
)
def test_torch_cuda(text: str, cuda: str | None) -> None:
    assert parse_torch_cuda(text) == cuda


def put(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (  # a parent's limit binds too
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({"sys/fs/cgroup/cpu.max": "garbage"}, 8),
    ],
)
def test_cores_obey_the_cgroup(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        put(tmp_path, name, text)
    assert available_cores(tmp_path) == cores


def test_traces_of_a_driver(tmp_path: Path) -> None:
    assert "NVIDIA kernel driver" not in " ".join(collect(tmp_path).driver)
    put(tmp_path, "proc/driver/nvidia/version", "NVRM version: …")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        put(tmp_path, f"dev/{name}")
    assert collect(tmp_path).driver[:2] == (
        "the NVIDIA kernel driver is loaded",
        "/dev holds 2 NVIDIA devices",
    )
