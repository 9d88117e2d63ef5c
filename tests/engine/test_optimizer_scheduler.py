"""Optimizers and schedulers stay the objects they were, and act only on whole gradients."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from diag.engine.accumulation import Window
from diag.engine.optimizer import StepGate, gate_of, put_gate
from diag.engine.precision import LossScale
from diag.engine.scheduler import step_with_optimizer
from diag.errors import DiagError


def trained(kind: type[Optimizer] = SGD, **options: Any) -> tuple[nn.Parameter, Optimizer]:
    weight = nn.Parameter(torch.ones(2))
    return weight, kind([weight], lr=0.1, **options)


def whole(synchronizes: bool = True) -> Any:
    return SimpleNamespace(synchronizes=synchronizes, may_clear=synchronizes)


def gated(optimizer: Optimizer, window: Any = None, scale: LossScale | None = None) -> StepGate:
    window = window or whole()
    return put_gate(optimizer, lambda: window, scale)


def test_nothing_happens_in_the_middle_of_a_window() -> None:
    weight, optimizer = trained()
    window = whole(synchronizes=False)
    gate = gated(optimizer, window)
    weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad()
    assert weight.tolist() == [1, 1]
    assert weight.grad.tolist() == [1, 1]
    window.synchronizes = window.may_clear = True
    optimizer.step()
    optimizer.zero_grad()
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert weight.grad is None
    assert gate.taken == 1


def test_zero_grad_first_keeps_the_window() -> None:
    """`zero_grad(); backward(); step()` accumulates as `backward(); step(); zero_grad()` does."""
    weight, optimizer = trained()
    window = Window(2)
    gated(optimizer, window)
    seen = []
    for _ in range(4):
        window.begin_micro_batch(None)
        optimizer.zero_grad()
        (weight.sum() / 2).backward()
        window.collected()
        assert weight.grad is not None
        seen.append(weight.grad[0].item())
        optimizer.step()
    assert seen == [0.5, 1.0, 0.5, 1.0]


def test_a_gate_is_put_once_and_can_serve_another_engine() -> None:
    weight, optimizer = trained()
    first = gated(optimizer, whole(synchronizes=False))
    assert gated(optimizer) is first
    weight.grad = torch.ones(2)
    optimizer.step()
    assert gate_of(optimizer) is first
    assert first.taken == 1


def test_a_released_gate_lets_everything_through() -> None:
    weight, optimizer = trained()
    gated(optimizer, whole(synchronizes=False)).released = True
    weight.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad()
    assert weight.grad is None
    assert weight.tolist() == pytest.approx([0.9, 0.9])


def test_copies_and_pickles_are_plain_optimizers() -> None:
    _, optimizer = trained(AdamW)
    gated(optimizer)
    saved = io.BytesIO()
    torch.save(optimizer, saved)
    saved.seek(0)
    for other in (copy.deepcopy(optimizer), torch.load(saved, weights_only=False)):
        assert type(other) is AdamW
        assert gate_of(other) is None
        assert other.state_dict() == optimizer.state_dict()


def test_step_hooks_run_once_per_real_step() -> None:
    weight, optimizer = trained()
    window = whole(synchronizes=False)
    gated(optimizer, window)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    weight.grad = torch.ones(2)
    optimizer.step()
    assert not seen
    window.synchronizes = True
    optimizer.step()
    assert seen == [1]


def test_a_closure_is_called() -> None:
    weight, optimizer = trained(torch.optim.LBFGS)
    gated(optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert weight.abs().max() < 1


# -- schedulers -----------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "StepLR": lambda o: StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o: OneCycleLR(o, 1.0, total_steps=12),
    "SequentialLR": lambda o: SequentialLR(o, [ConstantLR(o, 0.5), StepLR(o, 1)], [2]),
    "ChainedScheduler": lambda o: ChainedScheduler([ConstantLR(o, 0.5), StepLR(o, 2)]),
}


def rates(make: Callable[[Optimizer], LRScheduler], prepare: str, accumulate: int) -> list[float]:
    """The learning rates after each of six optimizer steps of `accumulate` micro-batches."""
    weight, optimizer = trained()
    window = Window(accumulate)
    if prepare == "optimizer first":
        gated(optimizer, window)
    scheduler = make(optimizer)
    if prepare == "scheduler first":
        gated(optimizer, window)
    if prepare != "plain":
        step_with_optimizer(scheduler)
        step_with_optimizer(scheduler)  # idempotent
    seen = []
    for _ in range(6):
        for _ in range(accumulate):
            if prepare != "plain":
                window.begin_micro_batch(None)
            weight.sum().backward()
            optimizer.step()
            scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("prepare", ["optimizer first", "scheduler first"])
def test_once_per_optimizer_step(make: Callable[[Optimizer], LRScheduler], prepare: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch warns of steps in the wrong order
        warnings.filterwarnings("ignore", "The epoch parameter")  # torch's own SequentialLR
        expected = rates(make, "plain", 1)
        assert rates(make, prepare, 3) == expected
        assert len(set(expected)) > 1


def test_plateau_and_once_per_epoch() -> None:
    weight, optimizer = trained()
    gated(optimizer)
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    step_with_optimizer(plateau)
    for loss in (1.0, 1.0, 1.0):
        for _ in range(5):
            weight.sum().backward()
            optimizer.step()
        plateau.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_a_scheduler_of_an_optimizer_that_was_not_prepared_is_free() -> None:
    _, optimizer = trained()
    scheduler = StepLR(optimizer, 1, 0.5)
    step_with_optimizer(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_schedulers_state_and_class_stay_what_they_were() -> None:
    weight, optimizer = trained()
    scheduler = StepLR(optimizer, 1, 0.5)
    before = scheduler.state_dict()
    gated(optimizer)
    step_with_optimizer(scheduler)
    assert isinstance(scheduler, StepLR)
    assert scheduler.state_dict() == before
    weight.sum().backward()
    optimizer.step()
    scheduler.step()
    other = StepLR(trained()[1], 1, 0.5)
    other.load_state_dict(scheduler.state_dict())
    assert other.last_epoch == 1


# -- loss scale -----------------------------------------------------------------------------


def scaled_training(fused: bool = False) -> tuple[nn.Parameter, Optimizer, LossScale, StepGate]:
    weight, optimizer = trained(AdamW, fused=True) if fused else trained()
    scale = LossScale(torch.device("cpu"), init_scale=4.0, growth_interval=2)
    return weight, optimizer, scale, gated(optimizer, scale=scale)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_the_count_and_the_schedule(fused: bool) -> None:
    weight, optimizer, scale, gate = scaled_training(fused)
    scheduler = StepLR(optimizer, 1, 0.5)
    step_with_optimizer(scheduler)
    skipped = []
    for value in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scale.scale((weight * value).sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        skipped.append(gate.step_was_skipped)
    scale.settle()
    assert skipped == [False, True, False]
    assert gate.taken == 2
    assert optimizer.param_groups[0]["lr"] == 0.025
    assert scale.scaler.get_scale() == 2.0
    assert torch.isfinite(weight).all()


def test_the_step_takes_unscaled_gradients_once() -> None:
    weight, optimizer, scale, _ = scaled_training()
    scale.scale(weight.sum()).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [4, 4]
    scale.unscale(optimizer)
    scale.unscale(optimizer)
    assert weight.grad.tolist() == [1, 1]
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    optimizer.step()  # a second step without a backward takes the same gradients
    assert weight.tolist() == pytest.approx([0.8, 0.8])


def test_two_optimizers_after_one_backward_share_the_scale() -> None:
    first, one, scale, _ = scaled_training()
    second, two = trained()
    gated(two, scale=scale)
    for _ in range(2):  # the scale grows after the second
        one.zero_grad()
        two.zero_grad()
        scale.scale((first + second).sum()).backward()  # type: ignore[no-untyped-call]
        one.step()
        two.step()
    assert torch.equal(first, second)
    scale.settle()
    assert scale.scaler.get_scale() == 8


def test_gradients_nobody_scaled_are_taken_as_they_are() -> None:
    weight, optimizer, _, gate = scaled_training()
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert gate.taken == 1


def test_an_optimizer_without_gradients_steps_in_peace() -> None:
    _, optimizer, scale, _ = scaled_training()
    other = nn.Parameter(torch.ones(1))
    scale.scale(other.sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def test_a_closure_cannot_be_scaled() -> None:
    weight, optimizer, scale, _ = scaled_training()
    scale.scale(weight.sum()).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(DiagError) as error:
        optimizer.step(lambda: 0.0)
    assert error.value.slug == "closure-with-fp16"
    optimizer.step(closure=None)
    assert weight.tolist() == pytest.approx([0.9, 0.9])
