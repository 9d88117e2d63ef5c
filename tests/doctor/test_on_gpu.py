"""On a machine with an NVIDIA GPU: the sources' answers, against each other and torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from diag.doctor.catalogue import ALL
from diag.doctor.checks import Plan, judge
from diag.doctor.collect import collect
from diag.doctor.facts import NvidiaTraces, Nvml, TorchRuntime

pytestmark = pytest.mark.gpu


def test_the_sources_agree(tmp_path: Path) -> None:
    import torch

    facts = collect(tmp_path)
    assert isinstance(facts.nvml, Nvml)
    assert isinstance(facts.torch, TorchRuntime)
    assert isinstance(facts.traces, NvidiaTraces)
    assert facts.nvml.failures == ()
    assert facts.traces.device_files
    assert facts.torch.device_count == torch.cuda.device_count() > 0
    assert facts.torch.nccl == torch.cuda.nccl.version()[:3]
    first = torch.cuda.get_device_properties(0)
    assert (first.major, first.minor) in [g.capability for g in facts.nvml.gpus]
    assert first.name in [g.name for g in facts.nvml.gpus]


def test_no_check_fails_on_a_machine_that_trains(tmp_path: Path) -> None:
    import torch

    torch.ones(8, device="cuda").sum().item()
    results = judge(collect(tmp_path), Plan(), ALL)
    assert not [r for r in results if r.status == "fail"]
    assert not [r for r in results if "check itself failed" in r.outcome.title]
