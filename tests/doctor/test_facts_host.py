"""Facts of the host: from made-up trees where the kernel writes, and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diag.doctor.facts import Setting
from diag.doctor.facts_host import read_clock, read_file_system, read_limits, read_memory
from diag.doctor.facts_network import read_network, resolve
from diag.doctor.facts_settings import read_settings
from diag.doctor.facts_torch import build_from, read_build
from diag.doctor.facts_tracing import read_tracing
from diag.doctor.sources import Absent


def test_memory(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\n"
    )
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (16 << 20, 8 << 20)
    assert (memory.limit_bytes, memory.usable_bytes) == (None, 8 << 20)


def test_a_place_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    disk = read_file_system(tmp_path / "some" / "runs")
    assert disk.path == str(tmp_path / "some" / "runs")
    assert disk.writable
    assert 0 < disk.free_bytes <= disk.size_bytes


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs /proc")
def test_a_place_that_cannot_be_written() -> None:
    assert not read_file_system(Path("/proc/self/fdinfo/runs")).writable or os.geteuid() == 0


def test_limits_are_this_process_s() -> None:
    limits = read_limits()
    assert limits.open_files is None or limits.open_files > 0


def test_the_clock_is_timed(tmp_path: Path) -> None:
    assert read_clock(tmp_path).source is None
    assert 1 < read_clock(tmp_path).read_ns < 1e6


def test_the_host_s_own_name() -> None:
    network = read_network()
    assert network.host_name
    assert "lo" in [i.name for i in network.interfaces]


def test_a_name_that_does_not_resolve() -> None:
    addresses, error = resolve("no-such-host.invalid")
    assert addresses == ()
    assert error


def test_settings_by_allow_list_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nccl.conf").write_text("# a comment\nNCCL_DEBUG=INFO\nNCCL_IB_DISABLE=1\n\n")
    (tmp_path / ".nccl.conf").write_text("NCCL_IB_DISABLE=0\nbroken line\nNCCL_ALGO = Ring\n")
    environ = {
        "HOME": str(tmp_path),
        "NCCL_DEBUG": "WARN",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "OMP_NUM_THREADS": "2",
    }
    user = str(tmp_path / ".nccl.conf")
    assert read_settings(environ, tmp_path).entries == (
        Setting("NCCL_DEBUG", "WARN", "environment"),
        Setting("OMP_NUM_THREADS", "2", "environment"),
        Setting("NCCL_IB_DISABLE", "0", user),
        Setting("NCCL_ALGO", "Ring", user),
    )


def test_the_user_s_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "mine.conf").write_text("NCCL_PROTO=LL\n")
    environ = {"NCCL_CONF_FILE": str(tmp_path / "mine.conf")}
    entry = read_settings(environ, tmp_path).get("NCCL_PROTO")
    assert entry == Setting("NCCL_PROTO", "LL", str(tmp_path / "mine.conf"))


def test_the_build_is_read_without_importing_torch(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n"
        "__version__ = '2.6.0+cu124'\ncuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n"
    )
    build = build_from(tmp_path)
    assert (build.version, build.cuda, build.hip) == ("2.6.0+cu124", "12.4", None)


def test_the_installed_build() -> None:
    import torch

    build = read_build()
    assert build.version == torch.__version__
    assert build.cuda == torch.version.cuda


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Absent):
        read_build()


def test_tracing_is_tried_on_a_child_that_does_not_survive() -> None:
    tracing = read_tracing()
    for outcome in (tracing.read, tracing.attach):
        assert outcome == "ok" or outcome.startswith("E")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or "cat" not in children.read_text()
