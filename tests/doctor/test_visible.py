"""CUDA_VISIBLE_DEVICES, by CUDA's rules."""

from __future__ import annotations

import pytest

from diag.doctor.checks_gpu import kernels_for
from diag.doctor.checks_nccl import select_interfaces
from diag.doctor.facts import Gpu
from diag.doctor.visible import Visible, select


def gpu(index: int, uuid: str, mig: bool = False) -> Gpu:
    return Gpu(index, "x", uuid, None, None, None, mig, None, None)


GPUS = [gpu(0, "GPU-aa11"), gpu(1, "GPU-aa22"), gpu(2, "GPU-bb33", mig=True)]


@pytest.mark.parametrize(
    ("value", "indices", "invalid"),
    [
        ("0,1", (0, 1), None),
        (" 2 , 0 ", (2, 0), None),
        ("", (), None),
        ("-1", (), "-1"),
        ("0,7,1", (0,), "7"),
        ("0,,1", (0,), ""),
        ("1,1", (1,), "1"),
        ("NoDevFiles", (), "NoDevFiles"),
        ("GPU-bb", (2,), None),
        ("GPU-aa", (), "GPU-aa"),  # not unique
        ("GPU-aa22,GPU-aa11", (1, 0), None),
        ("MIG-5c1e", (2,), None),
        ("0,²", (0,), "²"),
    ],
)
def test_select(value: str, indices: tuple[int, ...], invalid: str | None) -> None:
    assert select(value, GPUS) == Visible(indices, invalid)


@pytest.mark.parametrize(
    ("capability", "archs", "how"),
    [
        ((8, 0), ("sm_80",), "native"),
        ((8, 9), ("sm_80",), "native"),  # a newer minor runs older code
        ((8, 0), ("sm_86",), None),  # not the other way round
        ((9, 0), ("sm_80",), None),  # nor across majors
        ((9, 0), ("sm_80", "compute_80"), "ptx"),
        ((9, 0), ("sm_90a",), "native"),
        ((10, 0), ("sm_90a", "compute_90a"), None),  # specific code runs on its own only
        ((12, 0), ("sm_120",), "native"),
        ((12, 1), ("sm_120f",), "native"),  # family code runs on newer minors
        ((7, 0), ("sm_75", "nonsense"), None),
    ],
)
def test_kernels_for(capability: tuple[int, int], archs: tuple[str, ...], how: str | None) -> None:
    assert kernels_for(capability, archs) == how


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth0", ["eth0"]),
        ("=eth", []),
        ("eth1,ib", ["eth1", "ib0"]),
        ("^docker,lo", ["eth0", "eth1", "ib0"]),
        ("^=eth0", ["docker0", "eth1", "ib0", "lo"]),
        ("bond0", []),
        ("", []),
    ],
)
def test_select_interfaces(value: str, chosen: list[str]) -> None:
    assert select_interfaces(value, ["docker0", "eth0", "eth1", "ib0", "lo"]) == chosen
