"""The Engine on real ranks: its numbers are one process's, its refusals come before a hang."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.engine_ranks import exact_cases
from helpers.ranks import run_ranks
from helpers.strategies import STRATEGIES, needs_fsdp

# Starting the ranks counts as the first test's time, and a busy machine takes minutes for it.
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]
PATIENCE_S = 280.0
EXACT = 1e-10
SPECIAL_TO_3 = ("exactness", "joining", "norms")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 ranks found, by scenario."""
    directory = tmp_path_factory.mktemp("two")
    return run_ranks("helpers.engine_ranks", 2, directory, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("three")
    return run_ranks("helpers.engine_ranks", 3, directory, *SPECIAL_TO_3, timeout=PATIENCE_S)


@pytest.fixture(params=[2, 3])
def both(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request.getfixturevalue("two" if request.param == 2 else "three")
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("ranks", "name"), [(ranks, name) for ranks in (2, 3) for name in exact_cases(ranks)]
)
def test_weights_are_those_of_one_process(
    request: pytest.FixtureRequest, ranks: int, name: str, strategy: str
) -> None:
    found = request.getfixturevalue("two" if ranks == 2 else "three")
    assert 0 < found[0]["exactness"][f"{name}, {strategy}"] <= EXACT


@needs_fsdp
def test_fsdp_rounds_to_bf16_where_autocast_does(two: list[dict[str, Any]]) -> None:
    # Gathering norms and embeddings in 16 bit too would lead as far again from DDP.
    found = two[0]["half_precision"]
    assert found["bf16"] > 1e-3
    assert found["fsdp"] <= 1e-6


@pytest.mark.parametrize("name", ["SGD", "AdamW", "accumulated"])
def test_uneven_ranks_joined_train_as_one_process(both: list[dict[str, Any]], name: str) -> None:
    # The last batch is one rank's alone; then another epoch, with what the optimizers remember.
    assert 0 < both[0]["joining"][name] <= EXACT


@needs_fsdp
def test_what_cannot_be_joined_is_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["joining"]["fsdp"][0] == "cannot-join"
        assert found["joining"]["items"][0] == "items-while-joining"


@pytest.mark.parametrize("strategy", [*STRATEGIES, "ddp, a stream"])
def test_a_batch_that_others_do_not_have_is_refused(
    two: list[dict[str, Any]], strategy: str
) -> None:
    slug, what = two[0]["unjoined"][strategy]
    assert slug == "uneven-batches"
    assert "Rank 0 trains on batch 2 of its loader, but some ranks have only 1" in what
    assert two[1]["unjoined"][strategy][0] == "accepted"  # it has no such batch


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_synchronized_when_said(two: list[dict[str, Any]], strategy: str) -> None:
    unlike = False if strategy == "ddp" else None  # FSDP keeps them aside
    for found in two:
        assert found["synchronization"][strategy] == [
            [False, unlike],
            [True, True],
            ["within no_sync", unlike],
            ["triggered", True],
        ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_overflow_on_one_rank_skips_the_step_on_all(
    two: list[dict[str, Any]], strategy: str
) -> None:
    for found in two:
        assert found["overflow"][strategy] == {
            "seen": [[False, True], [True, False], [False, True]],
            "scale": 512.0,
            "rate": 0.025,
            "steps": 2,
            "finite": True,
        }


def test_norms_are_over_all_shards(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert len(found["norms"]) == 4 * len(STRATEGIES)
        assert max(found["norms"].values()) <= 1e-14


def test_models_that_take_turns_have_windows_of_their_own(two: list[dict[str, Any]]) -> None:
    taking_turns = [f"{strategy} {index}" for strategy in STRATEGIES for index in (0, 1)]
    assert 0 < max(two[0]["adversaries"][name] for name in taking_turns) <= EXACT


@needs_fsdp
def test_a_tail_that_cannot_be_weighed_is_refused(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["adversaries"]["ddp in one window"][0] == "accepted"
        slug, what = found["adversaries"]["fsdp in one window"]
        assert slug == "tail-in-two-backwards"
        assert "1 micro-batches into a window of 2 that 2 sharded models share" in what


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_preparing_apart_late_and_again(two: list[dict[str, Any]], strategy: str) -> None:
    for found in two:
        prepared = found["preparing"]
        assert prepared[f"{strategy} same"]
        assert prepared[f"{strategy} in place"]
        assert prepared[f"{strategy} deviation"] <= EXACT
        assert prepared[f"{strategy} steps"] == 5
        assert prepared[f"{strategy} said"] == ""
        assert prepared[f"{strategy} forgotten"] == [None, None]
        assert prepared[f"{strategy} elsewhere"]


def test_auto_says_why(two: list[dict[str, Any]]) -> None:
    main, other = (found["words"] for found in two)
    assert main["strategy"] == other["strategy"] == "ddp"
    assert main["why"].startswith("strategy DDP, since the model fits on each rank")
    assert main["printed"].split() == f"diag: {main['why']}".split()
    assert max(map(len, main["printed"].splitlines())) <= 80
    assert other["printed"] == ""


def test_warnings_name_rank_step_and_strays(two: list[dict[str, Any]]) -> None:
    main, last = (found["words"]["warned"] for found in two)
    assert "SGD holds 1 parameter(s) of no prepared model" in main
    assert "no prepared model" not in last
    assert "[rank 1] The loss is nan on rank 1 after 0 optimizer steps" in last
    assert "after 1 optimizer steps" in main  # the other rank, a step later


def test_a_frozen_model_is_a_teacher_or_a_mistake(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["words"]["frozen"][0] == "nothing-to-train"
        assert found["words"]["teacher"]
        assert found["words"]["nothing to train"][0] == "loss-without-gradient"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_states_go_from_ddp_to_either(two: list[dict[str, Any]], strategy: str) -> None:
    for found in two:
        state = found["states"][strategy]
        assert state["name"] == "checkpoint_0"
        assert state["steps"] == [3, 6]
        assert state["deviation"] <= EXACT
