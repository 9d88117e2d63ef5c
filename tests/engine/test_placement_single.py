"""Placing in a single process: checks, first values, recomputing; nothing is distributed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diag.engine.options import DDPOptions, FSDPOptions
from diag.engine.placement import is_placed, place, remap_optimizer, set_gradient_sync
from diag.engine.placement.checks import check_one_device, listing
from diag.engine.process import Process
from diag.errors import DiagError
from helpers.placement_models import GPT, Gain, Masked, Meddling, Normed, Recurrent, loss_of, tokens

ALONE = Process(0, 0, 1, 1, torch.device("cpu"), None)


def put(model: nn.Module, **options: Any) -> nn.Module:
    place(model, ALONE, "none", DDPOptions(), FSDPOptions(**options))
    return model


def seeded(kind: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return kind()


def frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "slug", "words"),
    [
        (frozen, "nothing-to-train", "none of its 2 parameters requires a gradient"),
        (nn.ReLU, "nothing-to-train", "it has none to require a gradient"),
        (lambda: nn.ModuleDict({"a": nn.Linear(2, 2)}), "model-without-forward", "ModuleDict has no"),
        (lambda: nn.LazyLinear(2), "lazy-parameters", "weight, bias"),
    ],
)  # fmt: skip
def test_refused(model: Callable[[], nn.Module], slug: str, words: str) -> None:
    with pytest.raises(DiagError) as raised:
        put(model())
    assert raised.value.slug == slug
    assert words in raised.value.what
    assert raised.value.hint


def test_parameters_on_two_devices() -> None:
    gpus = [torch.device("cuda", i) for i in (0, 1)]
    with pytest.raises(DiagError, match="2 on cuda:0 \\(a …\\); 1 on cuda:1") as raised:
        check_one_device({"a": gpus[0], "b": gpus[1], "c": gpus[0]})
    assert raised.value.slug == "parameters-on-two-devices"
    check_one_device({"a": gpus[0], "b": torch.device("meta")})


def test_a_listing_is_short() -> None:
    assert listing("abc") == "a, b, c"
    assert listing("abcdefg") == "a, b, c, d, e and 2 more"


def test_placed_once_and_recomputed_once() -> None:
    model = seeded(GPT)
    assert not is_placed(model)
    put(model, activation_checkpointing=True)
    assert is_placed(model)
    forward = model.blocks[0].forward
    put(model, activation_checkpointing=True)
    assert model.blocks[0].forward is forward
    set_gradient_sync(model, False)  # nothing to switch
    assert not is_placed(copy.deepcopy(model))


def test_recomputing_changes_no_value_and_no_name() -> None:
    plain, again = seeded(GPT), put(seeded(GPT), activation_checkpointing=True)
    calls: list[nn.Module] = []
    for block in again.blocks:
        block.up.register_forward_hook(lambda module, *_: calls.append(module))
    for model in (plain, again):
        loss_of(model, tokens(3)).backward()
    assert len(calls) == 6  # three blocks, twice each
    assert list(again.state_dict()) == list(plain.state_dict())
    for p, q in zip(again.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_a_copy_recomputes_with_its_own_weights() -> None:
    model = put(seeded(GPT), activation_checkpointing=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert loss_of(twin, tokens(3)).item() == loss_of(seeded(GPT), tokens(3)).item()


def test_nothing_to_recompute() -> None:
    with pytest.raises(DiagError, match="this one has none that can be told") as raised:
        put(Normed(), activation_checkpointing=True)
    assert raised.value.slug == "no-blocks"


KINDS: list[Callable[[], nn.Module]] = [
    GPT,
    Normed,
    Recurrent,
    Gain,
    lambda: nn.TransformerEncoderLayer(8, 2, 16),
    lambda: nn.MultiheadAttention(8, 2, kdim=4, add_bias_kv=True),
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.Bilinear(2, 3, 4)),
    lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.LSTM(3, 4, 2)),
    lambda: nn.Sequential(
        nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3, dtype=torch.double)
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_first_values_are_those_of_building_on_the_cpu(
    kind: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    reference = seeded(kind)
    after = torch.get_rng_state()
    model = seeded(kind, "meta")
    held = list(model.parameters())
    put(model)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in reference.state_dict().items())
    assert torch.equal(torch.get_rng_state(), after)
    assert caplog.messages == []
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        assert all(p is q for p, q in zip(held, model.parameters(), strict=True))


def test_what_has_values_keeps_them() -> None:
    """The weights are on the meta device, the rest was read already."""
    model = Normed()
    model.norm.running_mean.fill_(7)
    with torch.no_grad():
        model.norm.bias.fill_(5)
    model.norm.weight = nn.Parameter(model.norm.weight.to("meta"))
    model.first.to("meta")
    put(model)
    assert model.norm.running_mean.tolist() == [7] * 6
    assert model.norm.bias.tolist() == [5] * 6
    assert model.norm.weight.tolist() == [1] * 6
    assert bool(model.first.weight.isfinite().all())


def test_what_only_the_constructor_can_fill_is_refused() -> None:
    with pytest.raises(DiagError) as raised:
        put(seeded(Masked, "meta"))
    assert raised.value.slug == "nothing-initialises"
    assert raised.value.what.endswith(": scale (Masked), mask (Masked), chosen (Masked).")


def test_whoever_holds_the_whole_model_may_write_all_of_it() -> None:
    model = put(seeded(Meddling, "meta"))
    assert not model.bias.any()
    assert model.blocks[0].up.weight.all()  # by `_init_weights`, which comes last


def test_a_constructor_of_its_own_ways_is_told(caplog: pytest.LogCaptureFixture) -> None:
    put(seeded(lambda: GPT(inline=True), "meta"))
    assert "filled 3 tensors in a way of its own" in caplog.text
    assert "blocks.2.down.weight" in caplog.text


def test_an_initialiser_that_cannot_run_on_the_meta_device_still_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Scaled(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            if not self.weight.is_meta or self.weight.grad_fn is None:
                largest = (
                    1.0 if self.weight.is_meta and not Scaled.ready else self.weight.max().item()
                )
                nn.init.constant_(self.bias, largest)

        ready = False

    with torch.device("meta"):
        model = nn.Sequential(Scaled(2, 2))
    Scaled.ready = True
    with caplog.at_level(logging.WARNING):
        put(model)
    assert model[0].bias.tolist() == [model[0].weight.max().item()] * 2
    assert caplog.messages == []


def test_an_optimizer_of_a_meta_model_needs_no_remapping() -> None:
    model = seeded(GPT, "meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dict(model.named_parameters())
    put(model)
    remap_optimizer(optimizer, before, model)
    first = loss_of(model, tokens(4))
    first.backward()
    optimizer.step()
    assert loss_of(model, tokens(4)).item() < first.item()
