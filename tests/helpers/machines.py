"""Recorded and built machines of tests/doctor/machines, and how a test varies one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diag.doctor import codec
from diag.doctor.catalogue import ALL
from diag.doctor.checks import Outcome, Plan
from diag.doctor.facts import Facts, Gpu, Missing, Nvml, Setting, Settings, TorchRuntime

FOLDER = Path(__file__).parents[1] / "doctor" / "machines"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def machine(name: str) -> Facts:
    return codec.load(FOLDER / f"{name}.json")


def healthy(**changed: Any) -> Facts:
    """The healthy node of eight H100, with whole sources replaced."""
    return replace(machine("healthy-8xh100"), **changed)


def laptop(**changed: Any) -> Facts:
    """The machine without a GPU, with whole sources replaced."""
    return replace(machine("no-gpu"), **changed)


def vary(facts: Facts, source: str, /, **changed: Any) -> Facts:
    """`facts` with fields of one source changed."""
    return replace(facts, **{source: replace(getattr(facts, source), **changed)})


def gpus(facts: Facts, **changed: Any) -> Facts:
    """`facts` with GPU 2 changed, and only it."""
    nvml = facts.nvml
    assert isinstance(nvml, Nvml)
    return vary(facts, "nvml", gpus=tuple(_at_2(g, changed) for g in nvml.gpus))


def _at_2(gpu: Gpu, changed: dict[str, Any]) -> Gpu:
    return replace(gpu, **changed) if gpu.index == 2 else gpu


def env(facts: Facts, **variables: str) -> Facts:
    """`facts` with these environment variables and no others."""
    entries = tuple(Setting(k, v, "environment") for k, v in variables.items())
    return replace(facts, settings=Settings(entries))


def torch_says(facts: Facts, **changed: Any) -> Facts:
    assert isinstance(facts.torch, TorchRuntime)
    return vary(facts, "torch", **changed)


def check(code: str, facts: Facts, plan: Plan | None = None) -> Outcome:
    """The outcome of one check, its own mistakes not contained."""
    (found,) = (c for c in ALL if c.code == code)
    return found.judge(facts, plan or Plan())


def timed_out() -> Missing:
    return Missing("timeout", "no answer within 2.5 s")
