"""A session in this process: it contains its failures, is idempotent, and leaves nothing behind."""

from __future__ import annotations

import copy
import io
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import diag
from diag.probes import ProbeConfig, Session, current, install


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def config(directory: Path, **options: Any) -> ProbeConfig:
    return ProbeConfig(directory, 0, 0, 0, 1, 0, "cpu", **options)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = install(config(tmp_path / "rank"))
    yield session
    session.finish("script")
    assert current.session is None


def train(steps: int, batch: int = 4, stated: int | None = None) -> Model:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.randn(batch * steps, 4))
    for (x,) in torch.utils.data.DataLoader(data, batch_size=batch):
        if stated is not None:
            diag.samples(stated)
        model(x).sum().backward()
        optimizer.step()
    return model


def kept(session: Session) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    session.capture.ledger.sink.append_step = rows.append
    session.capture.ledger.deferred = False
    return rows


def test_the_loader_tells_the_samples_and_the_user_outranks_it(session: Session) -> None:
    rows = kept(session)
    train(5)
    assert [row[10] for row in rows] == [4, 4, 4, 4]
    rows.clear()
    train(6, stated=7)
    assert [row[10] for row in rows][2:] == [7, 7, 7, 7]


def test_samples_of_a_whole_step_are_shared_out(tmp_path: Path) -> None:
    session = install(config(tmp_path / "rank", samples_per_step=100))
    rows = kept(session)
    train(4)
    session.finish("script")
    assert [row[10] for row in rows] == [100, 100, 100]


def test_samples_is_harmless_without_probes_and_refuses_nonsense() -> None:
    diag.samples(8)
    with pytest.raises(ValueError, match="-1"):
        diag.samples(-1)


def test_a_model_under_probes_copies_and_pickles_as_before(session: Session) -> None:
    model = train(5)
    twin = copy.deepcopy(model)
    assert not twin._forward_hooks
    assert not twin._forward_pre_hooks
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"diag.probes" not in buffer.getvalue()
    assert pickle.loads(pickle.dumps(model)).linear.weight.equal(model.linear.weight)


def test_a_failing_probe_is_counted_and_training_goes_on(session: Session) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    session.capture.tracker.timeline.enter = broken
    train(3)
    assert session.failures.counts["begin"] > 0
    assert session.failures.first["begin"] == "RuntimeError: planted"


def test_a_directory_that_cannot_be_written_leaves_an_inert_session(tmp_path: Path) -> None:
    (tmp_path / "rank").write_text("in the way")
    session = install(config(tmp_path / "rank"))
    assert session.capture is None
    assert list(session.failures.counts) == ["install"]
    train(2)
    session.samples(3)
    session.finish("script")


def test_finishing_twice_and_installing_twice_are_harmless(tmp_path: Path) -> None:
    first = install(config(tmp_path / "a"))
    second = install(config(tmp_path / "b"))
    assert first.capture is None
    assert current.session is second
    second.finish("script")
    second.finish("script")
    assert current.session is None


def test_an_exception_in_the_model_passes_through_and_closes_its_phase(session: Session) -> None:
    train(5)

    class Boom(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("the user's own")

    Boom.__name__ = "Boom"
    session.capture.roots._label_all([Boom()])
    with pytest.raises(KeyError, match="own"):
        Boom()(torch.zeros(1, 4))
    assert len(session.capture.tracker.timeline.stack) == 1


def test_a_loader_that_ends_closes_its_phase(session: Session) -> None:
    train(5)
    assert session.capture.tracker.timeline.stack == [6]


def test_the_users_line_of_each_phase_is_remembered(session: Session) -> None:
    train(5)
    sites = session.capture.tracker.sites
    own = {phase: site for phase, site in sites.items() if site.startswith(__file__)}
    data, forward, backward, optimizer = 0, 2, 3, 4
    assert set(own) == {data, forward, backward, optimizer}
    line = {phase: int(site.rpartition(":")[2]) for phase, site in own.items()}
    # In train(): the loop's head, then the line that calls forward and backward, then the step.
    assert line[data] < line[forward] == line[backward] < line[optimizer]


def test_spans_are_recorded_with_their_step_and_harmless_without_probes(session: Session) -> None:
    events: list[tuple[Any, ...]] = []
    session.capture.watchers.sink.append_event = events.append

    @diag.span("outer")
    def both() -> None:
        with diag.span("inner"):
            time.sleep(0.002)

    train(3)
    both()
    spans = [(row[2], json.loads(row[4])["name"], row[1]) for row in events if row[3] == "span"]
    assert [(step, name) for step, name, _ in spans] == [(2, "inner"), (2, "outer")]
    assert spans[1][2] >= spans[0][2] >= 2_000_000
    session.finish("script")
    both()
    assert len([row for row in events if row[3] == "span"]) == 2


def test_a_save_within_a_save_is_one_checkpoint(session: Session, tmp_path: Path) -> None:
    events: list[tuple[Any, ...]] = []
    session.capture.watchers.sink.append_event = events.append
    train(3)
    with session.checkpoint("save_state"):
        torch.save({}, tmp_path / "weights")
    saves = [json.loads(row[4])["function"] for row in events if row[3] == "checkpoint"]
    assert saves == ["save_state"]


def test_a_checkpoint_is_placed_at_the_user_s_line(session: Session, tmp_path: Path) -> None:
    events: list[tuple[Any, ...]] = []
    session.capture.watchers.sink.append_event = events.append
    train(3)
    torch.save({}, tmp_path / "weights")
    (saved,) = [json.loads(row[4]) for row in events if row[3] == "checkpoint"]
    assert saved["site"].startswith(__file__)
