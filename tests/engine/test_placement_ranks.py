"""Placed models among two real ranks, started once."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.ranks import run_ranks
from helpers.strategies import STRATEGIES, needs_fsdp

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("helpers.placement_ranks", 2, tmp_path_factory.mktemp("placement"))


def every(of: Any, names: Any) -> dict[str, Any]:
    return dict.fromkeys(names, of)


PLACINGS = (
    "ddp",
    "ddp static",
    "ddp views",
    "fsdp",
    "fsdp kept",
    "fsdp recomputed",
    "ddp recomputed",
    "fsdp by class",
)
USES = ("sgd, optimizer last", "adamw, optimizer first")

# What both ranks see, in full.
SAME: dict[str, Any] = {
    # Losses and weights within 1e-14 of one process's, in float64; embeddings still tied.
    "parity": every([True, True, True], [f"{p}, {use}" for p in PLACINGS for use in USES]),
    # Apart before the synchronizing backward; then equal to one process's sum.
    "accumulation": every(
        [True, True], ("ddp static=False", "ddp static=True", "fsdp static=False")
    ),
    "bf16": {
        **every(["torch.bfloat16", True], ("ddp bf16 model", "fsdp bf16 model")),
        "ddp autocast": ["torch.float32"] * 3,
        "fsdp autocast": ["torch.bfloat16", "torch.float32", "torch.float32"],
        "equal": True,
    },
    "ddp_buffers": {"True": [True, True], "False": [True, False]},
    "ddp_keeps_the_model": ["GPT", True, [True] * 6],
    "ddp_options": {
        "unused": ["True"],
        "not told": [
            "Expected to have finished reduction in the prior iteration before starting a new one"
        ],
        "bucket": [1 << 20, True],
    },
    "ddp_sparse_and_frozen": [True, True, True, True],
    "after_a_failed_forward": True,
    "other_methods": {"ddp": True, "fsdp": True, "unnamed": False},
    "compiled": every(
        [True, True],
        (
            "ddp, compiled before",
            "ddp, compiled after",
            "ddp, compiled in place",
            "fsdp, compiled before",
            "fsdp, compiled after",
        ),
    ),
    "fsdp_buffers": [True, False],
    "fsdp_gives_back": every([True, True, True], ("kept=False", "kept=True")),
    "fsdp_frozen_and_strided": [True, True],
    "twice": every([True, []], ("ddp", "fsdp")),
    "meta_equals_one_process": every(
        [[], True, []],
        [
            "seeded otherwise",
            *(f"{k} {s}" for k in ("gpt", "normed", "recurrent", "attention") for s in ("ddp", "fsdp")),
        ],
    ),
    "meta_trains": [True, True, True],
    "optimizer_has_stepped": every(
        [True, True], ("ddp sgd", "ddp adamw", "fsdp sgd", "fsdp adamw")
    ),
    "groups_stay": [[0.5, 0.25], True, True, True],
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_on_both_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    if "fsdp" not in STRATEGIES and "FSDP on the CPU does not work" in str(ranks[0][name]):
        pytest.skip("a part of it is about FSDP, which this torch has not on the CPU")
    assert [rank[name] for rank in ranks] == [SAME[name]] * 2


@needs_fsdp
def test_no_rank_holds_the_whole_model(ranks: list[dict[str, Any]]) -> None:
    for name, position in (("fsdp_shards", 1), ("meta_never_whole", 1)):
        total = ranks[0][name][0]
        assert [rank[name][position] for rank in ranks] == [415, 408]
        assert sum(rank[name][position] for rank in ranks) == total


@needs_fsdp
def test_while_first_values_are_written_one_block_is_whole_at_most(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        total, _, largest, block = rank["meta_never_whole"]
        assert largest == block < total / 3


@needs_fsdp
def test_sharding_keeps_names_and_shapes(ranks: list[dict[str, Any]]) -> None:
    for rank, nothing_left in zip(ranks, (1, 0), strict=True):
        assert rank["fsdp_shards"][2:] == [nothing_left, True, 3, True]


@needs_fsdp
def test_what_cannot_be_initialised_as_before_is_named(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        told = rank["meta_told"]
        differing = [f"blocks.{i}.down.weight" for i in range(3)]
        assert told["inline"][0] == differing
        slug, what = told["masked"]
        assert slug == "nothing-initialises"
        assert what.endswith(": scale (Masked), mask (Masked), chosen (Masked).")
        slug, what = told["meddling"]
        assert slug == "initialiser-writes-blocks"
        assert "Initialising Meddling" in what
    lines = [rank["meta_told"]["inline"][1] for rank in ranks]
    assert lines[1] == []  # rank 0 speaks
    assert all(name in lines[0][0] for name in differing)


@needs_fsdp
def test_rank_0_alone_may_have_read_the_weights(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = dict(rank["meta_but_for_rank_0"])
        slug, what = found.pop("on rank 0")
        assert (slug, what[:45]) == (
            "meta-on-rank-0",
            "Rank 1 has values of 21 tensors that rank 0 h",
        )
        kinds = ("ddp GPT", "ddp Recurrent", "fsdp GPT", "fsdp Recurrent")
        assert found == every([[], True], kinds)


@needs_fsdp
def test_models_that_the_user_distributed_are_left(ranks: list[dict[str, Any]]) -> None:
    for rank, lines in zip(ranks, (1, 0), strict=True):
        assert rank["distributed_by_the_user"] == every([True, lines, True, True], ("ddp", "fsdp"))


REFUSALS = {
    "partly": ("partly-distributed", "blocks.1 is already distributed by DistributedDataParallel"),
    "tensor_parallel": ("parameters-sharded", "blocks.0.up.weight, blocks.0.up.bias"),
    "with_gradients": ("gradients-before-prepare", "20 parameters have gradients of a backward"),
    "zeroed": ("accepted", ""),
    "scalar": ("scalar-parameters", "without a dimension: temperature."),
    "mixed": ("mixed-dtypes", "up.bias is torch.float16"),
    "unlike": ("ranks-disagree", "rank 1: blocks.2.norm.weight"),
    "frozen_apart": ("ranks-disagree", "rank 1: blocks.0.norm.weight (frozen)"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_fsdp if n in ("scalar", "mixed") else ()) for n in REFUSALS],
)
def test_refused_on_every_rank(ranks: list[dict[str, Any]], name: str) -> None:
    slug, words = REFUSALS[name]
    for rank in ranks:
        assert rank["refused"][name][0] == slug
        assert words in rank["refused"][name][1]


@needs_fsdp
def test_an_optimizers_state_that_cannot_follow(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (shape, what), (differs, where) = rank["state_refused"]
        assert shape == "optimizer-state-unshardable"
        assert "embed.weight is sharded now" in what
        assert "[11, 1] instead of [11, 6]" in what
        assert differs == "optimizer-state-differs"
        assert "rank 0 and rank 1" in where
