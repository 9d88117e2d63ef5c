"""Less evidence gives a smaller verdict that says what is missing, never a wrong one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from diag.record.evidence import HangEvidence, RankEvidence, Reading
from diag.record.evidence_json import decode_evidence, encode_evidence
from diag.reports.hang.verdict import judge
from helpers.hang_cases import ALL, DEAD, MISMATCHED, UNEVEN, Case, ahead, among_two, behind
from helpers.hangs import TRAIN, evidence, main, rank, waiting

WITH_GROUPS = [
    case
    for case in (*DEAD, *UNEVEN, *MISMATCHED)
    if any(one.groups for one in case.evidence.readings[-1].ranks)
]


def stripped(given: HangEvidence, **fields: object) -> HangEvidence:
    readings = tuple(
        replace(r, ranks=tuple(replace(one, **fields) for one in r.ranks))  # type: ignore[arg-type]
        for r in given.readings
    )
    return replace(given, readings=readings)


@pytest.mark.parametrize("case", WITH_GROUPS, ids=lambda case: case.name)
def test_without_stacks_the_same_are_blamed(case: Case) -> None:
    verdict = judge(stripped(case.evidence, threads=(), children=(), missing=("stacks: refused",)))
    assert (verdict.code, verdict.culprits, verdict.proven) == (
        case.code,
        case.culprits,
        case.proven,
    )
    assert any(text.endswith("stacks: refused") for text in verdict.missing)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_verdict_can_be_made_again_from_the_file(case: Case) -> None:
    again = decode_evidence(json.loads(json.dumps(encode_evidence(case.evidence))))
    assert judge(again) == judge(case.evidence)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_nothing_but_names_and_states_still_gives_a_verdict(case: Case) -> None:
    bare = tuple(
        Reading(r.time_ns, tuple(RankEvidence(o.rank, 0, "", 0, o.state) for o in r.ranks))
        for r in case.evidence.readings
    )
    verdict = judge(replace(case.evidence, readings=bare))
    assert not verdict.proven
    assert verdict.why


def test_one_node_did_not_answer() -> None:
    given = evidence(ahead(0), ahead(1), world_size=4, missing=("node 1: no answer in 5 s",))
    members = (0, 1, 2, 3)
    ranks = tuple(
        replace(one, groups=tuple(replace(g, ranks=members) for g in one.groups))
        for one in given.readings[-1].ranks
    )
    verdict = judge(replace(given, readings=(Reading(1, ranks), Reading(2, ranks))))
    assert (verdict.code, verdict.culprits, verdict.proven) == ("hang-missing-rank", (2, 3), False)
    assert verdict.missing == ("node 1: no answer in 5 s", "ranks 2 and 3: nothing was read")


def test_stacks_taken_once_are_used_for_both_readings() -> None:
    stack = main((TRAIN, 88, "f"))
    verdict = judge(among_two(behind(1), first=[ahead(0), behind(1, threads=stack), ahead(2)]))
    assert verdict.location is not None
    assert (verdict.location.line, verdict.location.function) == (88, "f")


def test_a_flight_recorder_that_answered_once_is_no_progress() -> None:
    case = next(case for case in MISMATCHED if "flight recorder alone" in case.name)
    first, last = case.evidence.readings
    silent = replace(last, ranks=tuple(replace(one, groups=()) for one in last.ranks))
    verdict = judge(replace(case.evidence, readings=(first, silent)))
    assert (verdict.culprits, verdict.proven) == (case.culprits, True)


def test_seconds_are_counted_from_the_last_progress() -> None:
    assert judge(among_two(behind(1), still_s=4.5)).seconds_to_verdict == pytest.approx(5.5)


def test_all_wait_and_nothing_says_for_whom() -> None:
    verdict = judge(evidence(*(waiting(r) for r in range(2)), rank(2, phase="exposed_comm")))
    assert (verdict.code, verdict.culprits, verdict.waiting) == ("hang-missing-rank", (), (0, 1, 2))
    assert "nothing that could be read says for whom" in verdict.why
