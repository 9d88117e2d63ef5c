"""Collectives that were paired wrongly while the run went on."""

from __future__ import annotations

import pytest

from diag.record.evidence import Collective, HangEvidence
from diag.reports.hang.verdict import judge, judge_pairing
from helpers.hangs import call, evidence, group, main, rank, waiting

LOSS, METRIC = ("all_reduce", 30), ("all_reduce", 35)


def going_on(*calls_of_rank: list[tuple[str, int] | Collective]) -> HangEvidence:
    ranks = [
        rank(r, group(*calls), threads=main(("train.py", 8, "f")))
        for r, calls in enumerate(calls_of_rank)
    ]
    return evidence(*ranks, still_s=0.0)


def test_another_type_of_the_same_bytes_is_named() -> None:
    whole = call(0, "all_reduce", 33, dtype="int32")
    even = [LOSS, LOSS, LOSS]
    found = judge_pairing(going_on(even, [LOSS, whole, LOSS], even))
    assert found is not None
    assert (found.code, found.culprits, found.proven) == ("hang-mismatched-collective", (1,), False)
    assert found.location is not None
    assert found.location.line == 33
    assert [site.ranks for site in found.sites] == [(1,), (0, 2)]
    assert "went on" in found.why


def test_with_two_ranks_both_sides_are_named() -> None:
    found = judge_pairing(going_on([LOSS], [call(0, "all_reduce", 33, dtype="int32")]))
    assert found is not None
    assert found.culprits == (0, 1)


def test_a_rank_local_continue_shifts_the_sequence() -> None:
    steps = [LOSS, METRIC] * 8
    skipped = steps[:5] + steps[6:] + [LOSS]  # one METRIC left out
    found = judge_pairing(going_on(steps, skipped, steps))
    assert found is not None
    assert found.culprits == (1,)
    assert "number 5 of group 0" in found.why


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param([[LOSS] * 9, [LOSS] * 9], id="alike"),
        pytest.param([[LOSS] * 9, [METRIC] * 9], id="each rank its own branch"),
        pytest.param([[LOSS, METRIC] * 5, [LOSS, METRIC] * 4], id="one is merely ahead"),
        pytest.param(
            [[LOSS, METRIC] * 5, [LOSS, ("all_reduce", 36)] * 5], id="a branch in the loop"
        ),
        pytest.param([[LOSS, METRIC] * 2, [METRIC, LOSS] * 2], id="too short to tell"),
        pytest.param(
            [[call(0, "all_to_all", num_bytes=8)], [call(0, "all_to_all", num_bytes=16)]],
            id="legal sizes",
        ),
        pytest.param(
            [[call(0, dtype="")], [call(0, dtype="float32")]], id="a type one rank does not know"
        ),
        pytest.param([[], [LOSS]], id="not even begun"),
    ],
)
def test_what_may_be_well_is_left_alone(ranks: list[list[tuple[str, int] | Collective]]) -> None:
    assert judge_pairing(going_on(*ranks)) is None


def test_it_is_told_beside_the_hang_that_came_of_it() -> None:
    whole = call(0, "all_reduce", 33, dtype="int32")
    found = judge(
        evidence(
            waiting(0, group(LOSS, LOSS, LOSS, inside=True)),
            rank(1, group(LOSS, whole), threads=main(("train.py", 88, "f"))),
        )
    )
    assert (found.code, found.culprits) == ("hang-missing-rank", (1,))
    assert any("paired wrongly" in text for text in found.evidence)
