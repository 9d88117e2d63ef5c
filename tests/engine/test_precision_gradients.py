"""Autocast around forward, losses that are refused or reported, gradients in one process."""

from __future__ import annotations

import copy
import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diag.engine import gradients, losses, precision
from diag.engine.accumulation import Window
from diag.engine.process import Process
from diag.errors import DiagError, UsageError

CPU = torch.device("cpu")
ALONE = Process(0, 0, 1, 1, CPU, None)


class Nest(nn.Module):
    """Gives its output in a nest, and notes the dtype its layer computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: torch.dtype | None = None

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        y = self.layer(x)
        self.seen = y.dtype
        return {"logits": [y * scale], "count": torch.tensor(3), "name": "nest", "none": None}


@pytest.mark.parametrize(("mode", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_computes_in_half_and_gives_float32(mode: Any, dtype: torch.dtype) -> None:
    model = Nest()
    precision.autocast_forward(model, mode, CPU)
    precision.autocast_forward(model, mode, CPU)  # idempotent
    outputs = model(torch.ones(1, 3), scale=2.0)
    assert model.seen == dtype
    assert outputs["logits"][0].dtype == torch.float32
    assert (outputs["count"].dtype, outputs["name"], outputs["none"]) == (torch.int64, "nest", None)
    with precision.autocast(mode, CPU):
        assert (torch.ones(1, 3) @ torch.ones(3, 1)).dtype == dtype
    with precision.autocast(mode, CPU, enabled=False):
        assert (torch.ones(1, 3) @ torch.ones(3, 1)).dtype == torch.float32


def test_full_precision_leaves_the_model_alone() -> None:
    model = Nest()
    precision.autocast_forward(model, "no", CPU)
    assert "forward" not in vars(model)
    outputs = object()
    assert precision.to_float32(outputs) is outputs


def test_a_copy_computes_with_its_own_weights() -> None:
    model = Nest()
    precision.autocast_forward(model, "bf16", CPU)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert other(torch.ones(1, 3))["logits"][0].abs().sum() == 0
    assert other.seen == torch.bfloat16
    assert model(torch.ones(1, 3))["logits"][0].abs().sum() > 0


def test_a_prepared_model_can_be_saved_whole() -> None:
    model = nn.Linear(3, 2)
    precision.autocast_forward(model, "bf16", CPU)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    assert torch.equal(loaded.weight, model.weight)


def test_a_forward_that_was_replaced_before_is_kept() -> None:
    model = nn.Linear(3, 2)
    model.forward = lambda x: x @ torch.ones(3, 1)  # type: ignore[method-assign]
    precision.autocast_forward(model, "bf16", CPU)
    assert model(torch.ones(1, 3)).tolist() == [[3]]


def test_unknown_precisions_are_refused() -> None:
    assert precision.parse(None) == "no"
    assert precision.parse("BF16") == "bf16"
    for name in ("fp8", "half"):
        with pytest.raises(UsageError) as error:
            precision.parse(name)
        assert error.value.slug == "unknown-precision"


# -- losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "slug"),
    [
        (3.0, "loss-not-a-tensor"),
        (torch.ones(2, requires_grad=True) * 2, "loss-not-scalar"),
        (torch.tensor(1.0), "loss-without-gradient"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, slug: str) -> None:
    with pytest.raises(DiagError) as error:
        losses.check_loss(loss, {})
    assert error.value.slug == slug


def test_a_vector_with_its_gradient_is_a_loss() -> None:
    loss = torch.ones(2, requires_grad=True) * 2
    assert losses.check_loss(loss, {"gradient": torch.ones(2)}) is loss
    assert losses.check_loss(loss[:1], {}).numel() == 1


def test_a_loss_that_is_nan_is_told_once_with_rank_and_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = losses.LossWatch("warn")
    with caplog.at_level(logging.WARNING):
        for value in (1.0, float("nan"), float("inf")):
            watch.look(torch.tensor(value), rank=0, step=7)
    assert len(caplog.messages) == 1
    assert "The loss is nan on rank 0 after 7 optimizer steps" in caplog.messages[0]


def test_a_loss_that_is_nan_stops_on_request_only() -> None:
    with pytest.raises(DiagError) as error:
        losses.LossWatch("raise").look(torch.tensor(float("inf")), rank=2, step=0)
    assert error.value.slug == "loss-not-finite"
    assert "rank 2" in error.value.what
    losses.LossWatch("ignore").look(torch.tensor(float("inf")), rank=2, step=0)
    with pytest.raises(UsageError):
        losses.LossWatch("panic")  # type: ignore[arg-type]


def opened(steps: int) -> Window:
    window = Window(steps)
    window.begin_micro_batch(None)
    return window


def test_sums_over_items_become_the_mean_over_all_of_them() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    window = opened(2)
    parts = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5.0, 0.0, 1.0])]
    for part, items in zip(parts, (2, torch.tensor(5)), strict=True):
        if window.items is not None:
            window.begin_micro_batch(None)
        loss = losses.weigh_sum((weight * part).sum(), items, window, ALONE, careful=False)
        loss.backward()  # type: ignore[no-untyped-call]
    losses.settle(window, [weight], ALONE)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, (parts[0] + parts[1]).double() / 7, rtol=1e-15)


def test_a_careful_sum_is_divided_by_a_power_of_two_beforehand() -> None:
    window = opened(4)
    loss = torch.tensor(1e6)
    small = losses.weigh_sum(loss, 1000, window, ALONE, careful=True)
    assert window.unit == 2048
    assert small == loss / 2048
    losses.settle(window, [], ALONE)


def test_items_of_nothing_but_padding_give_no_nan() -> None:
    loss = losses.weigh_sum(torch.tensor(0.0), 0, Window(1), ALONE, careful=False)
    assert loss == 0


def test_sums_and_means_do_not_mix() -> None:
    window = opened(2)
    losses.weigh_mean(torch.tensor(1.0), window, None, ALONE)
    with pytest.raises(DiagError) as error:
        losses.weigh_sum(torch.tensor(1.0), 3, window, ALONE, careful=False)
    assert error.value.slug == "mixed-losses"


def test_ranks_with_fewer_samples_weigh_less() -> None:
    process = Process(0, 0, 3, 3, CPU, "gloo")
    position: Any = SimpleNamespace(local_samples=1, global_samples=9)
    loss = losses.weigh_mean(torch.tensor(6.0), opened(2), position, process)
    assert loss == 6.0 * (1 * 3 / 9) / 2


# -- gradients ------------------------------------------------------------------------------


def with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 2, 4)]
    parameters[0].grad = torch.tensor([3.0, 0.0, -4.0])
    parameters[1].grad = torch.tensor([12.0, 0.0])
    return parameters


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_is_torchs(norm_type: float) -> None:
    ours, theirs = with_gradients(), with_gradients()
    norm = gradients.clip_norm_(ours, 2.0, norm_type)
    expected = nn.utils.clip_grad_norm_(theirs, 2.0, norm_type)
    assert torch.equal(norm, expected)
    for a, b in zip(gradients.gradients(ours), gradients.gradients(theirs), strict=True):
        assert torch.equal(a, b)


def test_clipping_by_value_and_without_gradients() -> None:
    ours = with_gradients()
    gradients.clip_value_(ours, 3.5)
    assert [g.tolist() for g in gradients.gradients(ours)] == [[3, 0, -3.5], [3.5, 0]]
    assert gradients.clip_norm_([nn.Parameter(torch.ones(1))], 1.0, 2.0) == 0


def test_scaling_takes_numbers_and_tensors() -> None:
    ours = with_gradients()
    gradients.scale_(ours, 0.5)
    gradients.scale_(ours, torch.tensor(2.0, dtype=torch.float64))
    assert gradients.gradients(ours)[1].tolist() == [12, 0]
    assert gradients.gradients(ours)[1].dtype == torch.float32
