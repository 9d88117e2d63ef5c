"""Which modules FSDP shards one by one."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from diag.engine.options import FSDPOptions
from diag.engine.placement.wrap import find_blocks
from diag.errors import DiagError
from helpers.placement_models import GPT, Block


def blocks(model: nn.Module, **options: object) -> list[str]:
    """Names of the blocks, outer before inner."""
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in find_blocks(model, FSDPOptions(**options))]  # type: ignore[arg-type]


def small(width: int = 4) -> nn.Linear:
    return nn.Linear(width, width)


class Residual(nn.Module):
    """A block with a list of its own inside, longer than the list it stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(small(), nn.ReLU(), small(), nn.ReLU(), small())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def test_by_default_what_the_model_repeats() -> None:
    assert blocks(GPT()) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_list_inside_a_block_is_not_taken_for_the_blocks() -> None:
    model = nn.Sequential(nn.ModuleList([Residual(), Residual()]), small())
    assert blocks(model) == ["0.0", "0.1"]


def test_all_of_the_kind_wherever_they_stand() -> None:
    stages = [nn.Sequential(*(Residual() for _ in range(n))) for n in (1, 3, 2)]
    model = nn.Sequential(small(), *stages)
    assert blocks(model) == ["1.0", "2.0", "2.1", "2.2", "3.0", "3.1"]


def test_a_plain_sequential_is_cut_into_its_layers() -> None:
    assert blocks(nn.Sequential(small(), nn.ReLU(), small(), nn.Dropout())) == ["0", "2"]


def test_nothing_repeated_nothing_to_cut() -> None:
    assert blocks(Block(4)) == []


def test_torchs_transformer_layers() -> None:
    model = nn.Transformer(8, 2, 1, 2, 16)
    assert blocks(model) == ["encoder.layers.0", "decoder.layers.0", "decoder.layers.1"]


def test_what_the_model_calls_indivisible() -> None:
    model = GPT()
    model.blocks[1]._no_split_modules = ["Gain", "Block"]
    assert blocks(model) == ["blocks.0", "blocks.1", "blocks.2", "gain"]
    model.blocks[1]._no_split_modules = None
    assert blocks(model) == ["blocks.0", "blocks.1", "blocks.2"]


def test_by_class() -> None:
    nested = blocks(GPT(), wrap_classes=("Block", "LayerNorm"))
    assert nested == ["blocks.0", "blocks.0.norm", "blocks.1", "blocks.1.norm", "blocks.2",
                      "blocks.2.norm"]  # fmt: skip
    assert blocks(GPT(), wrap_classes=("GPT",)) == []  # the model itself is sharded anyway


def test_a_class_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(DiagError, match="names Blok, but the model has no module") as raised:
        blocks(GPT(), wrap_classes=("Block", "Blok"))
    assert raised.value.slug == "no-such-block"
    assert "Block ×3" in raised.value.hint


def test_by_size_from_the_bottom_up() -> None:
    """Up and down have 126 and 114 parameters, the norm beside them 12."""
    layers = ["blocks.0.up", "blocks.0.down"]
    assert blocks(GPT(blocks=1), wrap_min_params=114) == layers
    assert blocks(GPT(blocks=1), wrap_min_params=120) == ["blocks.0", "blocks.0.up"]  # 126 left
    assert blocks(GPT(blocks=1), wrap_min_params=200) == ["blocks.0"]
    assert blocks(GPT(blocks=1), wrap_min_params=10_000) == []


def test_by_size_attention_stays_whole() -> None:
    """Its output projection is used without being called."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert blocks(nn.Sequential(layer), wrap_min_params=60) == [
        "0.self_attn",
        "0.linear1",
        "0.linear2",
    ]


def test_containers_do_not_compute() -> None:
    model = nn.Sequential(nn.ModuleDict({"a": nn.Identity()}))
    model[0].extra = nn.ParameterList([nn.Parameter(torch.ones(100))])
    assert blocks(model, wrap_min_params=10) == []
    assert blocks(model, wrap_classes=("ParameterList", "ModuleDict")) == []


def test_a_block_that_shares_a_weight_with_the_rest_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = GPT()
    model.blocks[0].up.weight = model.blocks[2].up.weight
    with caplog.at_level(logging.INFO):
        assert blocks(model) == ["blocks.1"]
    assert "blocks.0 is no block of its own: blocks.2.up uses its weight" in caplog.messages
    within = Block(6)
    within.up.weight = nn.Parameter(within.down.weight.detach().T.clone())
    within.down = within.up
    assert blocks(nn.Sequential(within, Block(6))) == ["0", "1"]  # shared inside: no matter
