"""Checkpoints between real ranks: bit-equal resume, other placements, other numbers of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from diag.engine.process import Process
from helpers.checkpoint_training import Training
from helpers.launching import clean_environ
from helpers.strategies import STRATEGIES

pytestmark = pytest.mark.ranks

RANKS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def told(folder: Path) -> Any:
    subprocess.run(
        [sys.executable, "-m", "helpers.checkpoint_ranks", str(folder)],
        cwd=Path(__file__).resolve().parents[1],
        env=clean_environ(OMP_NUM_THREADS="1"),
        timeout=110,
        check=True,
    )
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resume_in_the_middle_of_an_epoch_has_the_same_bits(
    told: Any, rank: int, strategy: str
) -> None:
    straight, resumed = told["first"][rank][strategy], told["resumed"][rank][strategy]
    assert resumed["middle"] == straight["middle"]
    assert resumed["losses"] == straight["losses"]
    assert resumed["end"] == straight["end"]
    assert resumed["loaded"] == [3, 2, strategy, []]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saving_does_not_touch_the_training(told: Any, rank: int, strategy: str) -> None:
    saved = told["first"][rank][strategy]
    assert saved["made"]
    assert saved["untouched"]
    assert saved["onward"] == saved["losses"]
    assert saved["never stepped"]


def test_the_ranks_states_differ_and_so_had_to_be_kept_apart(told: Any) -> None:
    for strategy in STRATEGIES:
        first, second = (told["first"][rank][strategy]["middle"] for rank in RANKS)
        differing = {name for name in first if first[name] != second[name]}
        assert {"torch", "python", "numpy", "seen", "buffer norm.running_mean"} <= differing
        assert "first.weight" not in differing


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("strategy", "other"), list(permutations(STRATEGIES, 2)))
def test_another_placement_and_back_has_the_same_bits(
    told: Any, rank: int, strategy: str, other: str
) -> None:
    straight, resumed = told["first"][rank][strategy], told["resumed"][rank]
    assert resumed[f"{strategy}→{other}"] == straight["middle"]
    back = resumed[f"{strategy}→{other}→{strategy}"]
    assert back == [straight["middle"], straight["losses"], straight["end"]]


@pytest.mark.parametrize("world", ["one", "three"])
def test_another_number_of_ranks_gets_the_whole_state(told: Any, world: str) -> None:
    for rank, answers in enumerate(told[world]):
        assert len(answers) == len(STRATEGIES) ** (2 if world == "three" else 1)
        for way, (state, generators, again, losses) in answers.items():
            saved = told["first"][min(rank, 1)][way.split("→")[0]]["middle"]
            shared = told["first"][0][way.split("→")[0]]["middle"]
            assert state == {name: shared[name] for name in state}, way
            assert again, "loading twice must give the same generators"
            assert len(losses) == 1
            own = [saved[name] for name in ("torch", "python", "numpy")]
            # A rank that was there goes on with its own; a new one has others of its own.
            assert all((a == b) == (rank < 2) for a, b in zip(generators, own, strict=True))


def test_a_new_rank_has_generators_unlike_any_other(told: Any) -> None:
    generators = [answers["ddp→ddp"][1] for answers in told["three"]]
    for kind in range(3):
        assert len({states[kind] for states in generators}) == 3


@pytest.mark.parametrize(
    ("trouble", "slug", "words"),
    [
        ("load alone", "checkpoint-on-some-ranks", "rank 1 did not come within 0.5 s"),
        ("save alone", "checkpoint-on-some-ranks", "rank 1 did not come within 0.5 s"),
    ],
)
def test_a_call_on_one_rank_alone_ends(told: Any, trouble: str, slug: str, words: str) -> None:
    found, what, hint, seconds = told["troubles"][0][trouble]
    assert (found, words in what, "Every rank" in hint) == (slug, True, True)
    assert 0.5 <= seconds < 10
    assert told["troubles"][1][trouble][0] == "accepted"  # it made no call


@pytest.mark.parametrize(
    ("trouble", "slug", "words"),
    [
        ("save and load", "checkpoint-calls-differ", "rank 1: load_state"),
        ("other names", "checkpoint-calls-differ", "at-1"),
        ("absent", "no-such-checkpoint", "absent does not exist"),
        ("model of rank 1", "checkpoint-other-model", "On rank 1: model.0 is not the model"),
        ("state of rank 1", "state-not-plain", "On rank 1: The state_dict of custom.0 (Broken)"),
        ("object of rank 1", "checkpoint-failed", "On rank 1: ValueError: not on rank 1"),
    ],
)
def test_what_fails_on_one_rank_raises_on_all(
    told: Any, trouble: str, slug: str, words: str
) -> None:
    for rank in RANKS:
        found, what, _, seconds = told["troubles"][rank][trouble]
        assert found == slug
        assert words in what
        assert seconds < 10


def test_after_an_error_the_ranks_are_still_in_step(told: Any) -> None:
    for rank in RANKS:
        assert told["troubles"][rank]["after that"][0] == "accepted"
        assert told["troubles"][rank]["still well"][0] == "accepted"
        assert told["troubles"][rank]["left"] == ["good"], "a failed save leaves nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_are_gathered_whole(told: Any, folder: Path, strategy: str) -> None:
    alone = Process(0, 0, 1, 1, torch.device("cpu"), None)
    plain = Training(alone, "none").model.state_dict()
    for rank in RANKS:
        answer = told["exported"][rank][strategy]
        assert answer["keys"] == (list(plain) if rank == 0 else [])
        assert [answer[n] for n in ("same", "all", "plain", "tied")] == [True] * 4
    alone_slug = "accepted" if strategy == "ddp" else "checkpoint-on-some-ranks"
    assert told["exported"][0][strategy]["alone"] == alone_slug
    files = sorted((folder / "exported" / strategy).glob("*.safetensors"))
    assert len(files) == 3
    written = {n: t for file in files for n, t in safetensors.torch.load_file(file).items()}
    assert written.keys() == plain.keys() - {"tied.weight"}
    assert all(torch.equal(written[name], plain[name]) for name in written)
