"""Styles of training that once hid a wait, moved a label, or changed what the script computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diag.probes import ProbeConfig, install
from helpers.awkward import LATE_S, STEPS, STYLES
from helpers.ranks import run_ranks

LATE_MS = LATE_S * 1e3


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("helpers.awkward", 2, tmp_path_factory.mktemp("awkward"))


@pytest.mark.ranks
@pytest.mark.parametrize("style", STYLES)
def test_the_early_rank_waits_and_the_late_one_computes(
    answers: list[dict[str, Any]], style: str
) -> None:
    early, late = (answer[style] for answer in answers)
    assert early["failures"] == late["failures"] == {}
    assert early["mean_ms"]["exposed_comm"] == pytest.approx(LATE_MS, rel=0.4)
    assert late["mean_ms"]["exposed_comm"] < 0.5 * LATE_MS
    assert late["mean_ms"]["backward"] == pytest.approx(LATE_MS, rel=0.5)
    assert early["mean_ms"]["data"] == late["mean_ms"]["data"] == 0
    assert early["flags"] == late["flags"] == [0]
    assert early["ddp_waits"] == late["ddp_waits"] == list(range(1, STEPS))


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    session = install(ProbeConfig(tmp_path / "rank", 0, 0, 0, 1, 0, "cpu"))
    kept: list[tuple[Any, ...]] = []
    session.capture.ledger.sink.append_step = kept.append
    session.capture.ledger.deferred = False
    yield kept
    assert session.failures.counts == {}
    session.finish("script")


class Wrapping(torch.optim.SGD):
    """An optimizer that steps another one inside its own step, as ZeRO and SAM do."""

    def __init__(self, parameters: Any, inner: torch.optim.Optimizer) -> None:
        super().__init__(parameters, lr=0.0)
        self.inner = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


def test_a_nested_optimizer_leaves_no_phase_open(rows: list[tuple[Any, ...]]) -> None:
    model = torch.nn.Linear(4, 4)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = Wrapping(model.parameters(), inner)
    for _ in range(5):
        model(torch.ones(1, 4)).sum().backward()
        outer.step()
        torch.ones(400, 400).matmul(torch.ones(400, 400))
    optimizer_ns, host_ns = 7, 9
    assert all(row[host_ns] > row[optimizer_ns] for row in rows)


class Stored(torch.utils.data.Dataset[torch.Tensor]):
    """Every sample is a file of its own."""

    def __init__(self, directory: Path, count: int) -> None:
        self.paths = [directory / f"{i}.pt" for i in range(count)]
        for path in self.paths:
            torch.save(torch.ones(4), path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.as_tensor(torch.load(self.paths[index]))


def test_loading_samples_is_no_checkpoint(rows: list[tuple[Any, ...]], tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stored = Stored(tmp_path, 12)
    for x in torch.utils.data.DataLoader(stored, batch_size=2):
        model(x).sum().backward()
        optimizer.step()
    checkpoint = 4
    assert [row[14] & checkpoint for row in rows][1:] == [0] * 4


def test_a_persistent_loader_left_early_does_not_shift_the_counts(
    rows: list[tuple[Any, ...]],
) -> None:
    batches = [[0], [1, 2], [3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14]]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(15, 4)), batch_sampler=batches,
        num_workers=1, persistent_workers=True,
    )  # fmt: skip
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for number, (x,) in enumerate(loader):
            if number == 3:
                break
            model(x).sum().backward()
            optimizer.step()
    # A batch fetched and then left unused counts to the step it was fetched in.
    assert [row[10] for row in rows] == [2, 3, 4 + 1, 2, 3]


def test_lazy_modules_still_move_under_the_cuda_seams(rows: list[tuple[Any, ...]]) -> None:
    from diag.probes import current

    assert current.session is not None
    seams = current.session.capture.seams
    seams.install_cuda()
    lazy = torch.nn.LazyLinear(3).to(torch.float64)
    assert lazy(torch.ones(2, 5, dtype=torch.float64)).shape == (2, 3)


def test_a_teacher_in_eval_mode_is_no_evaluation(rows: list[tuple[Any, ...]]) -> None:
    student, teacher = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(8):
        x = torch.ones(2, 4)
        if step % 2:
            with torch.no_grad():
                teacher(x)
        student(x).sum().backward()
        optimizer.step()
    evaluation = 8
    assert [row[14] & evaluation for row in rows] == [0] * 7
