"""What must stay light, and how fast the command answers."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "pyarrow", "pandas", "numpy", "matplotlib", "rich", "jinja2", "accelerate")


def modules_after(code: str) -> set[str]:
    """Modules loaded by `code` in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.splitlines())


@pytest.mark.parametrize(
    "code",
    [
        "import diag",
        "import diag.cli.main",
        "import diag.launch.worker",
        "from diag.cli.main import build, load_command, COMMANDS\n"
        "build(); [load_command(name) for name in COMMANDS]",
    ],
)
def test_start_up_is_light(code: str) -> None:
    assert modules_after(code).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import diag.reports.explain, diag.reports.render.text, diag.reports.render.html",
        "import diag.record.reader, diag.record.store, diag.doctor.collect",
        "import diag.launch.launcher, diag.launch.plan",
    ],
)
def test_judging_and_planning_import_no_torch(code: str) -> None:
    assert "torch" not in modules_after(code)


def test_an_engine_costs_little_more_than_torch() -> None:
    """Two seconds of imports wait until a model is sharded, compiled or saved."""
    late = {"torch.distributed.tensor", "torch.distributed.checkpoint", "torch._dynamo", "sympy"}
    loaded = modules_after("from diag import Engine\nEngine(cpu=True)")
    assert loaded.isdisjoint(late - modules_after("import torch, torch.utils.data"))


def test_help_answers_at_once() -> None:
    command = [sys.executable, "-m", "diag", "--help"]
    seconds = []
    for _ in range(5):  # processor time, and the best of a few: the machine may be busy
        before = _children_cpu_s()
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        seconds.append(_children_cpu_s() - before)
    for name in ("run", "scaling-report", "runs", "doctor"):
        assert f"\n  {name} " in result.stdout
    assert min(seconds) <= 0.3


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
