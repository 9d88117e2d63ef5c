"""The examples train on real text: by hand and with the engine, alone and on two ranks."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
BY_HAND, ENGINE = EXAMPLES / "charlm_ddp.py", EXAMPLES / "charlm.py"
both = pytest.mark.parametrize("script", [BY_HAND, ENGINE], ids=["by-hand", "engine"])
SMALL = [
    "--steps=40",
    "--eval-every=20",
    "--batch-size=4",
    "--context=64",
    "--layers=1",
    "--width=64",
]


def run(script: Path, *launcher: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *SMALL],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(env or {})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: str, kind: str) -> list[float]:
    return [float(x) for x in re.findall(rf"^step +\d+  {kind} (\S+)$", output, re.MULTILINE)]


@both
def test_alone_it_learns(script: Path) -> None:
    output = run(script)
    first, *_, last = losses(output, "loss")
    assert first == pytest.approx(4.85, abs=0.4)  # ln(128): nothing known yet
    assert last < 3.6
    earlier, later = losses(output, "validation loss")
    assert later < earlier < 3.9
    assert "1 x cpu" in output


@pytest.mark.ranks
@both
def test_two_ranks_learn_and_one_prints(script: Path) -> None:
    output = run(script, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert output.count("2 x cpu") == 1
    assert len(losses(output, "validation loss")) == 2


@pytest.mark.ranks
def test_diag_ends_it_early_and_changes_no_number(tmp_path: Path) -> None:
    plain = run(ENGINE, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ["run", "--gpus", "2", "--device", "cpu", "--max-steps", "25"]
    recorded = run(ENGINE, "-m", "diag.cli.main", *options, "--runs-dir", str(tmp_path))
    assert losses(recorded, "loss") == losses(plain, "loss")[:3]  # steps 1, 10 and 20
    assert losses(recorded, "validation loss") == losses(plain, "validation loss")[:1]
    (recorded_run,) = tmp_path.iterdir()
    facts = json.loads((recorded_run / "run.json").read_text())
    assert (facts["ended_by"], facts["world_size"]) == ("max-steps", 2)


@pytest.mark.gpu
@both
def test_on_a_gpu_it_learns(script: Path) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    output = run(script, env={"CUDA_VISIBLE_DEVICES": visible})
    assert "1 x cuda" in output
    assert losses(output, "validation loss")[-1] < 3.6


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "charlm_model.py"))


def test_no_window_is_both_trained_on_and_held_out(example: dict[str, Any]) -> None:
    text, held_out = example["read_standard_library"]()
    assert len(text) > 5 * len(held_out) > 100_000
    assert int(text.max()) < example["NUM_SYMBOLS"]
    sample = bytes(held_out[:2_000].tolist())
    assert sample not in bytes(text.tolist())


def test_the_target_is_the_next_character(example: dict[str, Any]) -> None:
    windows = example["Windows"](torch.arange(100, dtype=torch.uint8), 10)
    assert len(windows) == 9
    x, y = windows[3]
    assert x.tolist() == list(range(30, 40))
    assert y.tolist() == list(range(31, 41))


def test_the_future_is_hidden(example: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = example["CharGPT"](context=8, layers=2, width=16, heads=2).eval()
    x = torch.randint(0, 128, (1, 8))
    changed = x.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 128
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
