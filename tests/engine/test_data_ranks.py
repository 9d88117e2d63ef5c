"""Loaders over three real ranks: seeds agreed upon, and rank 0 reading for all."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.data_ranks import SLOW_S, WORLD
from helpers.ranks import run_ranks

pytestmark = pytest.mark.ranks
Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return run_ranks("helpers.data_ranks", WORLD, tmp_path_factory.mktemp("data"))


def each(answers: Answers, name: str) -> list[Any]:
    return [answer[name] for answer in answers]


def test_ranks_with_different_generators_agree_on_the_order(answers: Answers) -> None:
    shuffles, drawn, seeds = zip(*each(answers, "agreed seeds"), strict=True)
    assert len(set(seeds)) == 1
    assert sorted(x for rank in shuffles for batch in rank for x in batch) == list(range(12))
    assert all(len(rank) == 2 for rank in drawn)


def test_one_rank_may_iterate_alone(answers: Answers) -> None:
    assert each(answers, "one rank alone") == [None, 2, None]


def test_a_dispatched_loader_gives_what_each_rank_would_read_itself(answers: Answers) -> None:
    assert each(answers, "dispatched as sharded") == [[]] * WORLD


def test_only_rank_0_reads(answers: Answers) -> None:
    assert each(answers, "only rank 0 reads") == [
        [4, 24, "DispatchSource"],
        [4, 0, "DispatchSource"],
        [4, 0, "DispatchSource"],
    ]


def test_a_dispatched_epoch_is_taken_up_again(answers: Answers) -> None:
    for rank in each(answers, "taken up again"):
        for went_on, expected in rank:
            assert went_on == expected != []


def test_a_failure_of_the_reader_ends_every_rank_at_the_same_batch(answers: Answers) -> None:
    first, *others = each(answers, "failing reader")
    assert first == [[[0], False], [[3], False], ["OSError", "the disk is gone"]]
    for rank, other in enumerate(others, 1):
        assert other[:2] == [[[rank], False], [[3 + rank], False]]
        assert other[2][0] == "DiagError"
        assert "Rank 0, which reads for all ranks, failed: OSError: the disk is gone" in other[2][1]


def test_an_endless_stream_can_be_left_and_begun_again(answers: Answers) -> None:
    for rank, (first, again) in enumerate(each(answers, "endless")):
        at = 2 * rank
        assert first == [[at, at + 1], [at + 6, at + 7]]
        assert again == [[at, at + 1]]


def test_data_pipes_are_left_to_divide_themselves(answers: Answers) -> None:
    for rank, seen in enumerate(each(answers, "data pipe")):
        assert seen == [[[rank, rank + 3], False], [[rank + 6], True]]


def test_the_ranks_generators_stay_in_step(answers: Answers) -> None:
    assert len(set(each(answers, "generators in step"))) == 1


def test_messages_keep_what_they_hold(answers: Answers) -> None:
    assert each(answers, "odd messages") == [[[], [True] * 3, [True, False], True]] * WORLD


@pytest.mark.parametrize("name", ["dispatched", "read by each", "map-style"])
def test_the_probes_count_a_batch_when_it_is_trained_on(answers: Answers, name: str) -> None:
    for rank in each(answers, "probes")[:-1]:
        assert rank[name]["failures"] == {}
        assert len(rank[name]["samples"]) >= 4
        assert rank[name]["samples"] == rank[name]["handed"] == [1] * len(rank[name]["handed"])


def test_waiting_for_rank_0s_reading_is_waiting_for_a_rank(answers: Answers) -> None:
    first, other = (rank["dispatched"]["mean_ms"] for rank in each(answers, "probes")[:-1])
    assert first["data"] > 0.9 * SLOW_S * 1e3
    # It waits for all that rank 0 does, on a busy machine for more.
    assert other["exposed_comm"] > 0.9 * SLOW_S * 1e3
    assert other["data"] < 0.5 * SLOW_S * 1e3


def test_every_ranks_own_reading_is_data_time(answers: Answers) -> None:
    for rank in each(answers, "probes")[:-1]:
        assert rank["read by each"]["mean_ms"]["data"] > 0.9 * SLOW_S * 1e3
