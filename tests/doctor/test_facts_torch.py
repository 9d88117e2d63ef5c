"""What torch is asked on a GPU node, by a stand-in with the attributes that are read."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diag.doctor import facts_torch
from diag.doctor.facts import TorchBuild, TorchRuntime


def fake_torch(available: bool, nccl: bool = True) -> Any:
    def is_available() -> bool:
        if not available:
            warnings.warn("CUDA initialization: CUDA unknown error\nmore", stacklevel=1)
        return available

    def init() -> None:
        if not available:
            raise RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nmore")

    cuda = SimpleNamespace(
        is_available=is_available,
        init=init,
        device_count=lambda: 4 if available else 0,
        get_arch_list=lambda: ["sm_80", "sm_90"],
        nccl=SimpleNamespace(version=lambda: (2, 21, 5)),
    )
    distributed = SimpleNamespace(is_available=lambda: True, is_nccl_available=lambda: nccl)
    return SimpleNamespace(cuda=cuda, distributed=distributed)


@pytest.fixture
def gpu_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    build = TorchBuild("2.6.0+cu124", "12.4", None, str(tmp_path))
    monkeypatch.setattr(facts_torch, "read_build", lambda: build)
    monkeypatch.setattr(facts_torch, "has_driver", lambda: True)
    return monkeypatch


def ask(patch: pytest.MonkeyPatch, torch: Any) -> TorchRuntime:
    patch.setitem(sys.modules, "torch", torch)
    return facts_torch.read_runtime()


def test_a_working_torch(gpu_node: pytest.MonkeyPatch) -> None:
    runtime = ask(gpu_node, fake_torch(available=True))
    assert (runtime.imported, runtime.error) == (True, None)
    assert (runtime.cuda_available, runtime.cuda_error, runtime.device_count) == (True, None, 4)
    assert (runtime.arch_list, runtime.nccl) == (("sm_80", "sm_90"), (2, 21, 5))


def test_the_reason_why_cuda_cannot_be_used(gpu_node: pytest.MonkeyPatch) -> None:
    runtime = ask(gpu_node, fake_torch(available=False))
    assert runtime.cuda_available is False
    assert runtime.cuda_error == "The NVIDIA driver on your system is too old (found 11040)."


def test_a_warning_is_the_reason_where_nothing_is_raised(gpu_node: pytest.MonkeyPatch) -> None:
    torch = fake_torch(available=False)
    torch.cuda.init = lambda: None
    assert ask(gpu_node, torch).cuda_error == "CUDA initialization: CUDA unknown error"


def test_a_build_without_nccl(gpu_node: pytest.MonkeyPatch) -> None:
    assert ask(gpu_node, fake_torch(available=True, nccl=False)).nccl is None


def test_a_torch_that_does_not_import(gpu_node: pytest.MonkeyPatch) -> None:
    runtime = ask(gpu_node, None)  # None in sys.modules makes the import fail
    assert runtime.imported
    assert "torch" in (runtime.error or "")
    assert runtime.cuda_available is None


def test_without_a_driver_torch_is_not_imported(gpu_node: pytest.MonkeyPatch) -> None:
    gpu_node.setattr(facts_torch, "has_driver", lambda: False)
    runtime = ask(gpu_node, None)
    assert (runtime.imported, runtime.error, runtime.device_count) == (False, None, 0)


def test_a_library_that_does_not_load_is_an_error(
    gpu_node: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu_node.setattr(facts_torch, "has_driver", lambda: False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cpu.so").write_bytes(b"not a library")
    assert "libtorch_cpu.so" in (ask(gpu_node, None).error or "")
