"""Every check, with facts that trip it and facts that are close to it and do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag.doctor.catalogue import ALL
from diag.doctor.checks import Plan
from diag.doctor.facts import (
    Facts,
    FileSystem,
    GpuProcess,
    Interface,
    Memory,
    Missing,
    Nvml,
    Setting,
    Settings,
)
from helpers.machines import check, env, gpus, healthy, laptop, timed_out, torch_says, vary

GIB, MIB = 1 << 30, 1 << 20
ABSENT = Missing("absent", "NVML Shared Library Not Found")
BROKEN = Missing("failed", "nvmlInit: RM has detected an NVML/RM version mismatch.")
EIGHT = Plan(gpus=8)


def disk(size: int, free: int, writable: bool = True) -> FileSystem:
    return FileSystem("/x", size, free, writable)


def memory(limit: int | None, used: int = 0, available: int = 64 * GIB) -> Memory:
    return Memory(128 * GIB, available, limit, used)


def from_file(facts: Facts, name: str, value: str) -> Facts:
    return replace(facts, settings=Settings((Setting(name, value, "/etc/nccl.conf"),)))


def mixed() -> Facts:
    return gpus(healthy(), name="Tesla V100-SXM2-16GB", memory_bytes=16 * GIB, capability=(7, 0))


def node(driver: str, cuda: tuple[int, ...], works: bool | None) -> Facts:
    return torch_says(vary(healthy(), "nvml", driver=driver, cuda=cuda), cuda_available=works)


def named(*addresses: str, **changed: Any) -> Facts:
    return vary(healthy(), "network", resolves_to=addresses, **changed)


# code, facts, plan, status, words that the title must hold
CASES: list[tuple[str, Callable[[], Facts], Plan, str, str]] = [
    ("python-version", lambda: vary(healthy(), "python", version=(3, 10, 14)), Plan(), "fail", "3.10.14"),
    ("python-version", lambda: vary(healthy(), "python", version=(3, 11, 0)), Plan(), "ok", "3.11.0"),
    ("torch-version", lambda: healthy(torch_build=Missing("absent", "none")), Plan(), "fail", "not installed"),
    ("torch-version", lambda: healthy(torch_build=Missing("failed", "x")), Plan(), "fail", "cannot be read"),
    ("torch-version", lambda: torch_says(healthy(), error="libcudart.so.12: no such file"), Plan(), "fail", "does not load"),
    ("torch-version", lambda: vary(healthy(), "torch_build", version="2.5.1+cu124"), Plan(), "fail", "too old"),
    ("torch-version", lambda: vary(healthy(), "torch_build", version="2.10.0"), Plan(), "ok", "supported"),
    ("torch-version", lambda: vary(healthy(), "torch_build", version="2.14.0a0+git1"), Plan(), "ok", "newer"),
    ("torch-build", lambda: vary(healthy(), "torch_build", cuda=None), Plan(), "fail", "CPU-only"),
    ("torch-build", lambda: vary(laptop(), "torch_build", cuda="12.6"), Plan(), "ok", "12.6"),
    ("torch-build", lambda: vary(healthy(), "torch_build", cuda=None, hip="6.2"), Plan(), "warn", "ROCm"),
    ("torch-build", laptop, Plan(), "ok", "CPU build"),
    ("torch-cuda", lambda: torch_says(healthy(), cuda_available=False, cuda_error="no"), Plan(), "fail", "cannot"),
    ("torch-cuda", healthy, Plan(), "ok", "can use"),
    ("torch-cuda", lambda: healthy(torch=timed_out()), Plan(), "skip", "2.5 s"),
    ("gpu-driver", lambda: healthy(nvml=ABSENT), Plan(), "fail", "without a driver"),
    ("gpu-driver", lambda: vary(healthy(nvml=ABSENT), "traces", container="docker"), Plan(), "fail", "container"),
    ("gpu-driver", lambda: healthy(nvml=BROKEN), Plan(), "fail", "does not work"),
    ("gpu-driver", lambda: vary(healthy(), "nvml", failures=("nvmlDeviceGetName(2): GPU is lost",)), Plan(), "fail", "errors"),
    ("gpu-driver", healthy, Plan(), "ok", "8 GPUs"),
    ("gpu-driver", laptop, Plan(), "skip", "no NVIDIA GPU"),
    ("gpu-driver", lambda: vary(laptop(), "traces", device_files=("dxg",)), Plan(), "skip", "no NVIDIA GPU"),
    ("gpu-driver", lambda: vary(laptop(), "traces", device_files=("nvidiactl",)), Plan(), "fail", "container"),
    ("driver-cuda", lambda: node("470.57.02", (11, 4), False), Plan(), "fail", "too old"),
    ("driver-cuda", lambda: node("470.57.02", (11, 4), True), Plan(), "ok", "forward"),
    ("driver-cuda", lambda: node("525.60.13", (12, 0), True), Plan(), "ok", "minor"),
    ("driver-cuda", lambda: node("550.54.15", (12, 4), False), Plan(), "ok", "new enough"),
    ("gpus-visible", lambda: torch_says(healthy(), device_count=7), Plan(), "warn", "7 of 8"),
    ("gpus-visible", lambda: torch_says(env(healthy(), CUDA_VISIBLE_DEVICES=""), device_count=0), Plan(), "fail", "no GPU"),
    ("gpus-visible", lambda: torch_says(env(healthy(), CUDA_VISIBLE_DEVICES="0,1,9,2"), device_count=2), Plan(), "warn", "'9'"),
    ("gpus-visible", lambda: torch_says(env(healthy(), CUDA_VISIBLE_DEVICES="0,1"), device_count=2), EIGHT, "fail", "8 GPUs asked for, 2"),
    ("gpus-visible", lambda: torch_says(env(healthy(), CUDA_VISIBLE_DEVICES="0,1"), device_count=2), Plan(gpus=2), "ok", "2 of 8"),
    ("gpus-visible", healthy, EIGHT, "ok", "8 of 8"),
    ("gpu-arch", lambda: torch_says(healthy(), arch_list=("sm_70", "sm_80")), Plan(), "fail", "0, 1, 2, 3, 4, 5, 6 and 7"),
    ("gpu-arch", lambda: torch_says(healthy(), arch_list=("sm_80", "compute_80")), Plan(), "warn", "compile"),
    ("gpu-arch", lambda: gpus(healthy(), capability=(12, 0)), Plan(), "fail", "GPU 2"),
    ("gpu-arch", healthy, Plan(), "ok", "native"),
    ("gpu-models", mixed, Plan(), "warn", "different"),
    ("gpu-models", lambda: gpus(healthy(), memory_bytes=94 * GIB), Plan(), "warn", "different"),
    ("gpu-models", lambda: torch_says(env(mixed(), CUDA_VISIBLE_DEVICES="0,1,3"), device_count=3), Plan(), "ok", "3 GPUs alike"),
    ("gpu-models", healthy, Plan(), "ok", "8 GPUs alike"),
    ("gpu-busy", lambda: gpus(healthy(), processes=(GpuProcess(7, 30 * GIB, "python"),)), Plan(), "warn", "GPU 2"),
    ("gpu-busy", lambda: gpus(healthy(), memory_used_bytes=30 * GIB), Plan(), "warn", "GPU 2"),
    ("gpu-busy", lambda: gpus(healthy(), processes=(GpuProcess(7, 20 * MIB, "Xorg"),)), Plan(), "ok", "free"),
    ("gpu-mig", lambda: gpus(healthy(), mig=True), Plan(), "warn", "GPU 2"),
    ("gpu-mig", lambda: gpus(healthy(), mig=None), Plan(), "ok", "no GPU is split"),
    ("gpu-compute-mode", lambda: gpus(healthy(), compute_mode=2), Plan(), "fail", "GPU 2"),
    ("gpu-compute-mode", lambda: gpus(healthy(), compute_mode=3), Plan(), "ok", "accepts"),
    ("nccl-version", lambda: torch_says(healthy(), nccl=(2, 25, 1)), Plan(), "warn", "2.25.1"),
    ("nccl-version", lambda: torch_says(healthy(), nccl=(2, 29, 2)), Plan(), "warn", "2.29.2"),
    ("nccl-version", lambda: torch_says(healthy(), nccl=(2, 18, 1)), Plan(), "warn", "older"),
    ("nccl-version", lambda: torch_says(healthy(), nccl=(2, 26, 2)), Plan(), "ok", "2.26.2"),
    ("nccl-version", lambda: torch_says(healthy(), nccl=(2, 29, 3)), Plan(), "ok", "2.29.3"),
    ("nccl-transport-off", lambda: env(healthy(), NCCL_P2P_DISABLE="1"), Plan(), "warn", "NCCL_P2P_DISABLE"),
    ("nccl-transport-off", lambda: env(healthy(), NCCL_SHM_DISABLE="1"), Plan(), "warn", "NCCL_SHM_DISABLE"),
    ("nccl-transport-off", lambda: from_file(healthy(), "NCCL_IB_DISABLE", "1"), Plan(), "warn", "NCCL_IB_DISABLE"),
    ("nccl-transport-off", lambda: env(healthy(), NCCL_P2P_LEVEL="LOC"), Plan(), "warn", "NCCL_P2P_LEVEL"),
    ("nccl-transport-off", lambda: env(healthy(), NCCL_P2P_DISABLE="0", NCCL_P2P_LEVEL="NVL"), Plan(), "ok", "no transport"),
    ("nccl-transport-off", lambda: env(vary(healthy(), "traces", infiniband=()), NCCL_IB_DISABLE="1"), Plan(), "ok", "no transport"),
    ("nccl-transport-off", lambda: env(healthy(), NCCL_P2P_DISABLE="1"), Plan(gpus=1), "skip", "one GPU"),
    ("nccl-debug", lambda: env(healthy(), NCCL_DEBUG="INFO"), Plan(), "warn", "INFO"),
    ("nccl-debug", lambda: env(healthy(), NCCL_DEBUG="trace"), Plan(), "warn", "trace"),
    ("nccl-debug", lambda: env(healthy(), NCCL_DEBUG="WARN"), Plan(), "ok", "off"),
    ("nccl-blocking-wait", lambda: env(healthy(), TORCH_NCCL_BLOCKING_WAIT="1"), Plan(), "warn", "TORCH_NCCL"),
    ("nccl-blocking-wait", lambda: env(healthy(), NCCL_BLOCKING_WAIT="true"), Plan(), "warn", "NCCL_BLOCKING"),
    ("nccl-blocking-wait", lambda: env(healthy(), TORCH_NCCL_BLOCKING_WAIT="0"), Plan(), "ok", "do not block"),
    ("socket-interface", lambda: env(healthy(), NCCL_SOCKET_IFNAME="eth0"), Plan(), "fail", "NCCL_SOCKET_IFNAME"),
    ("socket-interface", lambda: env(laptop(), GLOO_SOCKET_IFNAME="eth0,eth7"), Plan(), "fail", "GLOO_SOCKET_IFNAME"),
    ("socket-interface", lambda: env(healthy(), NCCL_SOCKET_IFNAME="^docker,lo"), Plan(), "ok", "fits"),
    ("socket-interface", lambda: env(laptop(), NCCL_SOCKET_IFNAME="nowhere"), Plan(), "ok", "prescribed"),
    ("socket-interface", lambda: env(healthy(), NCCL_SOCKET_IFNAME="", GLOO_SOCKET_IFNAME=""), Plan(), "ok", "prescribed"),
    ("host-name", lambda: named("127.0.1.1"), Plan(nnodes=2), "warn", "127.0.1.1 only"),
    ("host-name", lambda: named("127.0.0.1", "::1"), Plan(nnodes=2), "warn", "only"),
    ("host-name", lambda: named(resolve_error="Name or service not known"), Plan(nnodes=2), "warn", "does not resolve"),
    ("host-name", lambda: named("127.0.1.1"), Plan(), "ok", "127.0.1.1 only, which is enough for one node"),
    ("host-name", lambda: named(resolve_error="Name or service not known"), Plan(), "ok", "enough for one node"),
    ("host-name", lambda: named("127.0.1.1", resolve_seconds=5.1), Plan(), "warn", "5.1 s"),
    ("host-name", lambda: named("10.0.0.1", resolve_seconds=5.1), Plan(), "warn", "5.1 s"),
    ("host-name", lambda: named("127.0.1.1", "10.0.0.1"), Plan(), "ok", "10.0.0.1"),
    ("debug-settings", lambda: env(healthy(), CUDA_LAUNCH_BLOCKING="1"), Plan(), "warn", "1 debug setting"),
    ("debug-settings", lambda: env(laptop(), TORCH_DISTRIBUTED_DEBUG="detail"), Plan(), "warn", "1 debug setting"),
    ("debug-settings", lambda: env(laptop(), CUDA_LAUNCH_BLOCKING="1"), Plan(), "ok", "no debug"),
    ("debug-settings", lambda: env(healthy(), TORCH_DISTRIBUTED_DEBUG="INFO"), Plan(), "ok", "no debug"),
    ("cpu-cores", lambda: vary(healthy(), "cpu", quota=2.0), Plan(), "fail", "2 usable cores for 8 ranks"),
    ("cpu-cores", lambda: vary(healthy(), "cpu", affinity=4), Plan(), "fail", "4 usable cores"),
    ("cpu-cores", laptop, Plan(gpus=4), "warn", "2 usable cores for 4 ranks"),
    ("cpu-cores", laptop, Plan(gpus=2), "ok", "2 usable cores for 2 ranks"),
    ("cpu-cores", laptop, Plan(), "ok", "2 usable cores"),
    ("cpu-threads", lambda: env(laptop(), OMP_NUM_THREADS="16"), Plan(gpus=2), "ok", "rehearsal"),
    ("cpu-threads", lambda: env(healthy(), OMP_NUM_THREADS="16"), Plan(), "warn", "8 ranks x 16 threads"),
    ("cpu-threads", lambda: env(healthy(), OMP_NUM_THREADS="many"), Plan(), "warn", "not a number"),
    ("cpu-threads", lambda: env(healthy(), OMP_NUM_THREADS="14"), Plan(), "ok", "112 cores"),
    ("cpu-threads", lambda: env(healthy(), OMP_NUM_THREADS="8,2"), Plan(), "ok", "8 ranks x 8 threads"),
    ("host-memory", lambda: healthy(memory=memory(3 * GIB)), Plan(), "fail", "3.0 GiB"),
    ("host-memory", lambda: healthy(memory=memory(16 * GIB, 3 * GIB)), Plan(), "warn", "13 GiB"),
    ("host-memory", lambda: healthy(memory=memory(None)), Plan(), "ok", "64 GiB"),
    ("host-memory", lambda: laptop(memory=memory(None, available=3 * GIB)), Plan(gpus=2), "ok", "3.0 GiB"),
    ("shm-size", lambda: healthy(shm=disk(64 * MIB, 64 * MIB)), Plan(), "fail", "64 MiB"),
    ("shm-size", lambda: healthy(shm=disk(512 * MIB, 512 * MIB)), Plan(), "warn", "512 MiB"),
    ("shm-size", lambda: healthy(shm=disk(8 * GIB, 10 * MIB)), Plan(), "warn", "full"),
    ("shm-size", lambda: healthy(shm=disk(GIB, GIB)), Plan(), "ok", "1.0 GiB"),
    ("open-files", lambda: vary(healthy(), "limits", open_files=1024), Plan(), "warn", "1,024"),
    ("open-files", lambda: vary(laptop(), "limits", open_files=1024), Plan(gpus=2), "ok", "1,024"),
    ("open-files", lambda: vary(laptop(), "limits", open_files=128), Plan(), "warn", "128"),
    ("open-files", lambda: vary(healthy(), "limits", open_files=None), Plan(), "ok", "no limit"),
    ("runs-disk", lambda: healthy(runs=disk(GIB, GIB, writable=False)), Plan(), "fail", "cannot be written"),
    ("runs-disk", lambda: healthy(runs=disk(9 * GIB, GIB)), Plan(), "fail", "too full"),
    ("runs-disk", lambda: healthy(runs=disk(9 * GIB, 4 * GIB)), Plan(), "warn", "little"),
    ("runs-disk", lambda: healthy(runs=disk(90 * GIB, 40 * GIB)), Plan(), "ok", "40 GiB"),
    ("clock-source", lambda: vary(healthy(), "clock", source="hpet", read_ns=1200.0), Plan(), "warn", "hpet"),
    ("clock-source", lambda: vary(healthy(), "clock", source=None, read_ns=900.0), Plan(), "warn", "900 ns"),
    ("clock-source", lambda: vary(healthy(), "clock", source="kvm-clock", read_ns=40.0), Plan(), "ok", "kvm-clock"),
    ("trace-permission", lambda: vary(healthy(), "python", py_spy=None), Plan(), "warn", "not installed"),
    ("trace-permission", lambda: vary(healthy(), "tracing", attach="EPERM"), Plan(), "warn", "cannot be read"),
    ("trace-permission", lambda: vary(healthy(), "tracing", yama_scope=1), Plan(), "ok", "children"),
    ("trace-permission", laptop, Plan(), "ok", "from outside"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "facts", "plan", "status", "words"),
    CASES,
    ids=[f"{c[0]}-{c[3]}-{c[4].replace(' ', '_')}" for c in CASES],
)
def test_check(code: str, facts: Callable[[], Facts], plan: Plan, status: str, words: str) -> None:
    outcome = check(code, facts(), plan)
    assert outcome.status == status, outcome
    assert words in outcome.title
    if status in ("warn", "fail"):
        assert outcome.evidence
        assert outcome.hint
    else:
        assert not outcome.hint


@pytest.mark.parametrize("code", [c.code for c in ALL])
def test_every_check_is_seen_tripping_and_passing(code: str) -> None:
    statuses = {case[3] for case in CASES if case[0] == code}
    assert statuses & {"warn", "fail"}
    assert "ok" in statuses


@pytest.mark.parametrize("code", [c.code for c in ALL])
def test_a_missing_source_never_breaks_a_check(code: str) -> None:
    sources = ("traces", "nvml", "torch_build", "torch", "python", "settings", "network", "cpu")
    sources += ("memory", "shm", "runs", "limits", "clock", "tracing")
    nothing = healthy(**dict.fromkeys(sources, timed_out()))
    assert check(code, nothing).title
    for source in sources:
        assert check(code, healthy(**{source: timed_out()})).title


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG",
                "GLOO_SOCKET_IFNAME", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_DEBUG_SUBSYS",
                "TORCH_NCCL_BLOCKING_WAIT", "CUDA_LAUNCH_BLOCKING", "TORCH_DISTRIBUTED_DEBUG",
            ]
        ),
        st.text(max_size=12) | st.sampled_from(["9" * 5000, "-0", "0x1", "1e9", "²", "٣", ",", "^="]),
    )
)  # fmt: skip
def test_absurd_variables_break_no_check(variables: dict[str, str]) -> None:
    facts = env(healthy(torch=timed_out()), **variables)
    for one in ALL:
        assert one.judge(facts, Plan()).title


def test_the_busy_gpu_is_described_with_its_holder() -> None:
    busy = gpus(healthy(), memory_used_bytes=31 * GIB, processes=(GpuProcess(7, 30 * GIB, None),))
    outcome = check("gpu-busy", busy)
    assert outcome.evidence == ("GPU 2: 31 GiB of 80 GiB held by a process (pid 7)",)
    assert "CUDA_VISIBLE_DEVICES=0,1,3,4,5,6,7" in outcome.hint


def test_mixed_models_are_narrowed_to_the_most_frequent_one() -> None:
    hint = check("gpu-models", mixed()).hint
    assert hint == "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1,3,4,5,6,7"


def test_a_setting_is_taken_back_where_it_was_made() -> None:
    facts = from_file(healthy(), "NCCL_P2P_DISABLE", "1")
    assert "remove NCCL_P2P_DISABLE from /etc/nccl.conf" in check("nccl-transport-off", facts).hint
    facts = env(healthy(), NCCL_P2P_DISABLE="1")
    assert check("nccl-transport-off", facts).hint.endswith("unset NCCL_P2P_DISABLE")


def test_a_driver_hint_names_the_branch_that_cuda_needs() -> None:
    hint = check("driver-cuda", node("470.57.02", (11, 4), False)).hint
    assert "525 or newer" in hint
    assert "CUDA 11" in hint


def test_a_lost_gpu_is_not_counted_as_a_model() -> None:
    nvml = healthy().nvml
    assert isinstance(nvml, Nvml)
    lost = gpus(healthy(), name=None, memory_bytes=None, capability=None, processes=None)
    assert check("gpu-models", lost).status == "ok"


def test_the_outward_interface_is_proposed() -> None:
    interfaces = (
        Interface("docker0", True, ("172.17.0.1",)),
        Interface("eno1", False, ("10.0.0.9",)),
        Interface("eno2", True, ("10.0.0.1",)),
    )
    facts = vary(named("127.0.1.1"), "network", interfaces=interfaces)
    assert "GLOO_SOCKET_IFNAME=eno2" in check("host-name", facts, Plan(nnodes=4)).hint
