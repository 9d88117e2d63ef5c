"""The plan's rules, each on a machine stated literally."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from diag.errors import DiagError, UsageError
from diag.launch.hardware import Gpu, Hardware
from diag.launch.options import RunOptions
from diag.launch.plan import Endpoint, LaunchPlan, make_plan, parse_endpoint

FOUR_GPUS = Hardware(
    gpus=tuple(Gpu(i, f"GPU-{i}aaa-bbb", f"NVIDIA H{i}", 80 * 2**30) for i in range(4)),
    driver=("the NVIDIA kernel driver is loaded",),
    cores=16,
    torch_cuda="12.8",
    cpu_name="EPYC",
)
NO_GPU = Hardware(cores=8, torch_cuda="", cpu_name="EPYC")
BROKEN = Hardware(driver=("NVML says: Unknown Error",), nvml_error="Unknown Error", cores=8)


def plan(hardware: Hardware, environ: dict[str, str] | None = None, **options: Any) -> LaunchPlan:
    return make_plan(RunOptions("train.py", **options), hardware, environ or {})


def refusal(hardware: Hardware, environ: dict[str, str] | None = None, **options: Any) -> DiagError:
    with pytest.raises(DiagError) as caught:
        plan(hardware, environ, **options)
    return caught.value


def test_all_gpus_by_default() -> None:
    p = plan(FOUR_GPUS)
    assert (p.device, p.backend, p.nproc, p.rehearsal) == ("cuda", "nccl", 4, False)
    assert p.device_name == "NVIDIA H0"
    assert p.notes == ()
    assert p.env == {"OMP_NUM_THREADS": "1"}


def test_more_gpus_than_present_names_both_counts() -> None:
    error = refusal(FOUR_GPUS, gpus=8)
    assert error.slug == "too-few-gpus"
    assert error.exit_code == 2
    assert error.what == "--gpus 8, but this machine has 4 GPUs"
    assert "--device cpu" in error.hint


def test_hidden_gpus_do_not_count() -> None:
    two = replace(FOUR_GPUS, visible_devices="2,3")
    assert plan(two).nproc == 2
    assert plan(two).device_name == "NVIDIA H2"
    assert refusal(two, gpus=3).what == (
        "--gpus 3, but this machine has 2 GPUs visible (2 hidden by CUDA_VISIBLE_DEVICES)"
    )


def test_all_gpus_hidden_is_no_rehearsal() -> None:
    error = refusal(replace(FOUR_GPUS, visible_devices=""))
    assert (error.slug, error.exit_code) == ("gpus-hidden", 3)
    assert "4 GPUs" in error.what
    assert "CUDA_VISIBLE_DEVICES=''" in error.what


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_broken_gpu_node_is_never_a_silent_cpu_run(device: Any) -> None:
    error = refusal(BROKEN, device=device, gpus=2)
    assert (error.slug, error.exit_code) == ("gpu-unusable", 3)
    assert "NVML says: Unknown Error" in error.what
    assert "diag doctor" in error.hint


def test_gpus_and_a_torch_without_cuda() -> None:
    error = refusal(replace(FOUR_GPUS, torch_cuda=""))
    assert error.slug == "torch-without-cuda"
    assert "diag doctor" in error.hint
    # An unknown build is torch's own matter.
    assert plan(replace(FOUR_GPUS, torch_cuda=None)).device == "cuda"


@pytest.mark.parametrize("hardware", [FOUR_GPUS, BROKEN, NO_GPU])
def test_device_cpu_always_rehearses(hardware: Hardware) -> None:
    p = plan(hardware, device="cpu", gpus=3)
    assert (p.device, p.backend, p.nproc, p.rehearsal) == ("cpu", "gloo", 3, True)
    assert p.notes == ("rehearsal (as asked): 3 CPU ranks with gloo, 1 thread each",)
    assert p.env["CUDA_VISIBLE_DEVICES"] == ""  # the script must not find a GPU either
    assert p.env["ACCELERATE_USE_CPU"] == "true"


def test_device_cuda_without_one() -> None:
    assert refusal(NO_GPU, device="cuda").exit_code == 2


def test_rehearsal_says_so_in_one_line() -> None:
    assert plan(NO_GPU, gpus=4).notes == (
        "rehearsal (no NVIDIA GPU here): 4 CPU ranks with gloo, 1 thread each",
    )
    assert plan(NO_GPU).nproc == 1
    assert plan(NO_GPU).device_name == "EPYC"


def test_rehearsal_on_too_few_cores_says_that_too() -> None:
    assert plan(NO_GPU, gpus=8).notes[1:] == ()
    assert plan(NO_GPU, gpus=9).notes[1:] == (
        "9 threads share 8 cores, so the ranks slow each other down",
    )
    assert plan(NO_GPU, gpus=3, threads=4).notes == (
        "rehearsal (no NVIDIA GPU here): 3 CPU ranks with gloo, 4 threads each",
        "12 threads share 8 cores, so the ranks slow each other down",
    )


def test_absurd_rehearsals_are_refused() -> None:
    assert plan(NO_GPU, gpus=256).nproc == 256
    assert refusal(NO_GPU, gpus=257).slug == "too-many-ranks"


@pytest.mark.parametrize(
    ("hardware", "environ", "threads", "expected"),
    [
        (NO_GPU, {}, None, 1),
        (NO_GPU, {"OMP_NUM_THREADS": "8"}, None, 1),  # 8 per rank would thrash
        (NO_GPU, {"OMP_NUM_THREADS": "8"}, 3, 3),
        (FOUR_GPUS, {}, None, 1),
        (FOUR_GPUS, {"OMP_NUM_THREADS": "8"}, None, 8),
        (FOUR_GPUS, {"OMP_NUM_THREADS": "4,2"}, None, 1),
    ],
)
def test_threads(
    hardware: Hardware, environ: dict[str, str], threads: int | None, expected: int
) -> None:
    p = plan(hardware, environ, threads=threads)
    assert p.threads == expected
    assert p.env["OMP_NUM_THREADS"] == str(expected)
    # The number of ranks plays no part: a baseline must be comparable.
    assert plan(hardware, environ, threads=threads, gpus=1).threads == expected


def test_mkl_follows_where_it_would_win() -> None:
    assert plan(NO_GPU, {"MKL_NUM_THREADS": "8"}).env["MKL_NUM_THREADS"] == "1"
    assert "MKL_NUM_THREADS" not in plan(NO_GPU).env


def test_a_chosen_gloo_interface_stays() -> None:
    assert plan(NO_GPU).env["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in plan(NO_GPU, {"GLOO_SOCKET_IFNAME": "eth1"}).env
    two_nodes = plan(NO_GPU, nnodes=2, node_rank=0, rdzv_endpoint="a:1")
    assert "GLOO_SOCKET_IFNAME" not in two_nodes.env


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"gpus": -2}, "--gpus -2"),
        ({"threads": 0}, "--threads 0"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"baseline_steps": 0}, "--with-baseline 0"),
        ({"samples_per_step": -1}, "--samples-per-step -1"),
        ({"nnodes": 0}, "--nnodes 0"),
        ({"node_rank": -1}, "--node-rank -1"),
        ({"max_restarts": -1}, "--max-restarts -1"),
    ],
)
def test_counts_that_are_none(options: dict[str, Any], flag: str) -> None:
    error = refusal(NO_GPU, **options)
    assert isinstance(error, UsageError)
    assert error.what.startswith(flag)


def test_single_node_meets_itself_on_a_free_port() -> None:
    p = plan(NO_GPU)
    assert (p.nnodes, p.node_rank, p.endpoint, p.world_size) == (1, 0, None, 1)
    assert p.rdzv_id != plan(NO_GPU).rdzv_id


def test_several_nodes() -> None:
    p = plan(NO_GPU, gpus=4, nnodes=3, node_rank=2, rdzv_endpoint="10.0.0.1:29500")
    assert (p.world_size, p.node_rank) == (12, 2)
    assert p.endpoint == Endpoint("10.0.0.1", 29500)
    assert p.rdzv_id == "diag"
    assert plan(NO_GPU, nnodes=2, node_rank=0, rdzv_endpoint="a:1", rdzv_id="j7").rdzv_id == "j7"


def test_srun_numbers_the_nodes() -> None:
    slurm = {"SLURM_NODEID": "1"}
    assert plan(NO_GPU, slurm, nnodes=2, rdzv_endpoint="a:1").node_rank == 1
    assert plan(NO_GPU, slurm, nnodes=2, rdzv_endpoint="a:1", node_rank=0).node_rank == 0
    assert plan(NO_GPU, slurm).node_rank == 0


@pytest.mark.parametrize(
    ("options", "slug"),
    [
        ({"nnodes": 2, "node_rank": 0}, "no-endpoint"),
        ({"nnodes": 2, "rdzv_endpoint": "a:1"}, "no-node-rank"),
        ({"nnodes": 2, "node_rank": 2, "rdzv_endpoint": "a:1"}, "bad-node-rank"),
        ({"node_rank": 1}, "bad-node-rank"),
    ],
)
def test_nodes_that_cannot_meet(options: dict[str, Any], slug: str) -> None:
    assert refusal(NO_GPU, **options).slug == slug


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("node0:29500", Endpoint("node0", 29500)),
        ("[fd00::1]:80", Endpoint("fd00::1", 80)),
        ("127.0.0.1:65535", Endpoint("127.0.0.1", 65535)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize("text", ["node0", "node0:", ":29500", "node0:words", "a:0", "a:65536", ""])
def test_endpoints_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_endpoint(text)
