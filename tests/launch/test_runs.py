"""Real ranks under `diag run`: what succeeds, what is recorded, what the terminal shows."""

from __future__ import annotations

import stat
from pathlib import Path
from textwrap import dedent

import pytest

from helpers.launching import Finished, run_diag, run_json, started_diag
from helpers.ranks import free_port

pytestmark = pytest.mark.ranks

TRAIN = """
    import os, sys
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    def main():
        dist.init_process_group()
        print("args", sys.argv, "threads", torch.get_num_threads())
        print("rank", dist.get_rank(), "of", dist.get_world_size(), file=sys.stderr)
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(4, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = 0
        try:
            while True:
                optimizer.zero_grad()
                model(torch.randn(2, 4)).sum().backward()
                step += 1
                optimizer.step()
        finally:
            print("finally after step", step)

    if __name__ == "__main__":
        main()
"""


def write(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(source))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Two ranks of a DDP script and its baseline, each with a limit of steps."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "src/train.py", TRAIN)
    words = [
        "run",
        "--gpus",
        "2",
        "--device",
        "cpu",
        "--tee",
        "all",
        "--name",
        "n",
        "--max-steps",
        "5",
        "--with-baseline=3",
    ]
    script = ["src/train.py", "--gpus", "$$HOME", "${local_rank}", "--api-key", "abc", "--"]
    return folder, run_diag(*words, *script, cwd=folder, NCCL_DEBUG="WARN", MY_TOKEN="x")


def test_all_ranks_stop_after_the_same_step_and_finally_runs(
    trained: tuple[Path, Finished],
) -> None:
    folder, run = trained
    assert run.code == 0, run.err
    for rank in (0, 1):
        assert f"[rank {rank}] finally after step 5\n" in run.out
        assert "after step 5" in (folder / f"diag-runs/n/logs/0000{rank}-0/stdout.log").read_text()
    assert run.out.count("finally after step 3") == 1  # the baseline's one rank


def test_arguments_arrive_untouched(trained: tuple[Path, Finished]) -> None:
    _, run = trained
    words = ["src/train.py", "--gpus", "$$HOME", "${local_rank}", "--api-key", "abc", "--"]
    assert f"[rank 1] args {words} threads 1\n" in run.out


def test_what_the_terminal_says(trained: tuple[Path, Finished]) -> None:
    own = [line for line in trained[1].err.splitlines() if line.startswith("diag: ")]
    assert own[0] == "diag: rehearsal (as asked): 2 CPU ranks with gloo, 1 thread each"
    assert own[1:] == [
        "diag: baseline first: 3 steps on 1 rank",
        "diag: baseline recorded in diag-runs/n-baseline; now the run on 2 ranks",
        "diag: ended after 5 optimizer steps (--max-steps): nothing after the loop ran",
        "diag: recorded 2 ranks in diag-runs/n",
        "diag: next: diag scaling-report n",
    ]
    assert "[rank 1] rank 1 of 2" in trained[1].err


def test_run_json(trained: tuple[Path, Finished]) -> None:
    folder, _ = trained
    facts = run_json(folder / "diag-runs/n")
    expected = {
        "name": "n",
        "role": "run",
        "script": "src/train.py",
        "module": None,
        "mode": "attach",
        "device": "cpu",
        "rehearsal": True,
        "backend": "gloo",
        "world_size": 2,
        "nnodes": 1,
        "nproc_per_node": 2,
        "threads": 1,
        "max_steps": 5,
        "probes": True,
        "restarts": 0,
        "ended_by": "max-steps",
        "exit_code": 0,
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["script_args"][-3:] == ["--api-key", "***", "--"]
    assert "abc" not in (folder / "diag-runs/n/run.json").read_text()
    assert facts["env"]["NCCL_DEBUG"] == "WARN"
    assert "MY_TOKEN" not in facts["env"]
    assert {"diag", "python", "torch"} <= facts["versions"].keys()
    assert facts["started_ns"] < facts["launch_ns"] < facts["ended_ns"]
    baseline = run_json(folder / "diag-runs/n-baseline")
    assert (baseline["role"], baseline["world_size"], baseline["max_steps"]) == ("baseline", 1, 3)
    assert baseline["script_sha256"] == facts["script_sha256"]


def test_the_record_is_private_and_complete(trained: tuple[Path, Finished]) -> None:
    run_dir = trained[0] / "diag-runs/n"
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert sorted(p.name for p in (run_dir / "ranks").iterdir()) == ["00000-0", "00001-0"]
    assert (run_dir / "ranks/00001-0/rank.json").exists()


def test_replicate_and_fsdp2_and_loader_workers(tmp_path: Path) -> None:
    write(
        tmp_path / "train.py",
        """
        import torch, torch.distributed as dist
        from torch.distributed._composable.replicate import replicate
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

        def train(model, loader):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for (batch,) in loader:
                optimizer.zero_grad()
                loss = model(batch).square().mean()
                loss.backward()
                optimizer.step()
            return loss.item()

        def build():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

        if __name__ == "__main__":
            dist.init_process_group()
            data = TensorDataset(torch.arange(64.0).reshape(16, 4) / 64)
            sampler = DistributedSampler(data, shuffle=False)
            loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=1)
            for wrap in (replicate, lambda m: fully_shard(m, mesh=init_device_mesh("cpu", (2,)))):
                model = build()
                wrap(model)
                print(type(model).__name__, round(train(model, loader), 6))
            dist.destroy_process_group()
        """,
    )
    run = run_diag("run", "--gpus", "2", "--device", "cpu", "train.py", cwd=tmp_path)
    assert run.code == 0, run.err
    replicated, sharded = (line.split()[-1] for line in run.out.splitlines())
    assert replicated == sharded


def test_accelerate_unchanged(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    write(
        tmp_path / "train.py",
        """
        import torch
        from accelerate import Accelerator
        from torch.utils.data import DataLoader, TensorDataset

        accelerator = Accelerator()
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = TensorDataset(torch.ones(8, 4))
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=2))
        for (batch,) in loader:
            accelerator.backward(model(batch).mean())
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(accelerator.num_processes, accelerator.device, type(model).__name__, len(loader))
        """,
    )
    run = run_diag("run", "--gpus", "2", "--device", "cpu", "train.py", cwd=tmp_path)
    assert run.code == 0, run.err
    assert run.out == "2 cpu:0 DistributedDataParallel 2\n"


# Scripts below do not import torch, so that their ranks start fast.


def test_two_agents_as_two_nodes_share_one_run(tmp_path: Path) -> None:
    write(
        tmp_path / "train.py",
        """
        import os
        print({k: os.environ[k] for k in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")})
        assert os.environ["MASTER_PORT"] == os.environ["PORT"]
        """,
    )
    port = free_port()
    words = f"run --gpus 1 --device cpu --nnodes 2 --rdzv-endpoint 127.0.0.1:{port} --rdzv-id j"
    second = tmp_path / "second"
    second.mkdir()
    last = ["--runs-dir", str(tmp_path / "runs"), str(tmp_path / "train.py")]
    with started_diag(
        *words.split(), "--node-rank", "1", *last, cwd=second, PORT=str(port)
    ) as node1:
        node0 = run_diag(*words.split(), "--node-rank", "0", *last, cwd=tmp_path, PORT=str(port))
        assert node0.code == 0, node0.err
        assert node1.wait(timeout=30) == 0, (second / "err").read_text()
    (run_dir,) = (tmp_path / "runs").iterdir()
    facts = run_json(run_dir)
    assert (facts["world_size"], facts["nnodes"], facts["nproc_per_node"]) == (2, 2, 1)
    for rank in (0, 1):
        log = (run_dir / f"logs/0000{rank}-0/stdout.log").read_text()
        assert f"'RANK': '{rank}', 'LOCAL_RANK': '0', 'GROUP_RANK': '{rank}'" in log
    assert "'RANK': '0'" in node0.out
    assert (second / "out").read_text() == ""  # rank 0 is the other node's
    assert "no rank imported torch" in (second / "err").read_text()


def test_restarts_keep_every_life_apart(tmp_path: Path) -> None:
    write(
        tmp_path / "train.py",
        """
        import os, sys
        life = os.environ["TORCHELASTIC_RESTART_COUNT"]
        print("life", life)
        sys.exit(4 if life == "0" else 0)
        """,
    )
    words = [
        "run",
        "--gpus",
        "2",
        "--device",
        "cpu",
        "--name",
        "r",
        "--max-restarts",
        "1",
        "train.py",
    ]
    run = run_diag(*words, cwd=tmp_path)
    assert run.code == 0, run.err
    assert run.out == "life 0\nlife 1\n"
    facts = run_json(tmp_path / "diag-runs/r")
    assert (facts["restarts"], facts["ended_by"]) == (1, "script")
    logs = tmp_path / "diag-runs/r/logs"
    assert (logs / "00000-0/stdout.log").read_text() == "life 0\n"
    assert (logs / "00001-1/stdout.log").read_text() == "life 1\n"


def test_a_name_that_is_taken_is_said_before_the_script_speaks(tmp_path: Path) -> None:
    write(tmp_path / "train.py", "import sys; print('training', file=sys.stderr)")
    (tmp_path / "diag-runs/r").mkdir(parents=True)
    run = run_diag("run", "--device", "cpu", "--name", "r", "train.py", cwd=tmp_path)
    assert run.code == 0, run.err
    assert run.err.splitlines()[:3] == [
        "diag: rehearsal (as asked): 1 CPU rank with gloo, 1 thread each",
        "diag: there is a run r already, so this one is r-2",
        "training",
    ]


def test_kill_switch_installs_nothing(tmp_path: Path) -> None:
    write(
        tmp_path / "train.py",
        """
        import sys, torch
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]).step()  # on 2 ranks, undistributed
        print(sorted(m for m in sys.modules if m.startswith(("diag.probes", "diag.launch.limits"))))
        """,
    )
    words = ["run", "--gpus", "2", "--device", "cpu", "--name", "k", "train.py"]
    run = run_diag(*words, cwd=tmp_path, DIAG_OFF="1")
    assert run.code == 0, run.err
    assert run.out == "[]\n"
    assert "diag: probes were off" in run.err
    assert run_json(tmp_path / "diag-runs/k")["probes"] is False
    assert list((tmp_path / "diag-runs/k/ranks").iterdir()) == []
