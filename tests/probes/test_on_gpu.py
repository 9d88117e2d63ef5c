"""Capture on a real GPU: the same bits, phases of the device's own time, nothing added that waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diag.probes import ProbeConfig, install
from helpers.fakes import Rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 12


def train(spin_forward: int = 0) -> list[str]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    data = torch.utils.data.TensorDataset(torch.randn(8 * STEPS, 256))
    losses = []
    for (x,) in torch.utils.data.DataLoader(data, batch_size=8):
        if spin_forward:
            torch.cuda._sleep(spin_forward)
        loss = model(x.cuda(non_blocking=True)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    torch.cuda.synchronize()
    return [loss.item().hex() for loss in losses]


def probed(directory: Path) -> tuple[list[str], Rows, dict[str, int]]:
    rows = Rows()
    session = install(ProbeConfig(directory, 0, 0, 0, 1, 0, "cuda"))
    session.capture.ledger.sink = rows
    losses = train()
    session.finish("script")
    return losses, rows, session.failures.counts


def test_same_bits_and_exact_phases(tmp_path: Path) -> None:
    plain = train()
    losses, rows, failures = probed(tmp_path / "rank")
    assert losses == plain
    assert failures == {}
    assert len(rows.steps) == STEPS - 1
    for row in rows.steps:
        phases = [v for k, v in row.items() if k.endswith("_ns") and k not in
                  ("start_ns", "end_ns", "probe_ns")]  # fmt: skip
        assert sum(phases) == row["end_ns"] - row["start_ns"]
        assert all(ns >= 0 for ns in phases)


def test_no_synchronization_is_added(tmp_path: Path) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        session = install(ProbeConfig(tmp_path / "rank", 0, 0, 0, 1, 0, "cuda"))
        model = torch.nn.Linear(64, 64).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        x = torch.randn(8, 64, device="cuda")
        for _ in range(STEPS):
            model(x).sum().backward()
            optimizer.step()
        assert session.failures.counts == {}
    finally:
        torch.cuda.set_sync_debug_mode("default")
        session.finish("script")
