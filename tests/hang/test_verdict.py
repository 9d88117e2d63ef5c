"""The verdict on a hundred planted hangs and near misses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diag.codes import CATALOGUE
from diag.record.evidence import HangEvidence
from diag.reports.hang.verdict import judge
from helpers.hang_cases import ALL, Case

PROVEN = [case for case in ALL if case.proven]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_code_culprits_line_and_proof_are_right(case: Case) -> None:
    verdict = judge(case.evidence)
    line = verdict.location.line if verdict.location else None
    found = (verdict.code, verdict.culprits, line, verdict.proven, verdict.pause)
    assert found == (case.code, case.culprits, case.line, case.proven, case.pause), verdict.why
    assert verdict.why
    assert not set(verdict.culprits) & set(verdict.waiting) or case.pause


@pytest.mark.parametrize("case", PROVEN, ids=lambda case: case.name)
def test_nothing_is_proven_too_soon(case: Case) -> None:
    assert not judge(replace(case.evidence, still_s=2.9)).proven


@pytest.mark.parametrize("case", PROVEN, ids=lambda case: case.name)
def test_nothing_is_proven_by_one_reading(case: Case) -> None:
    verdict = judge(replace(case.evidence, readings=case.evidence.readings[-1:]))
    assert (verdict.code, verdict.culprits, verdict.proven) == (case.code, case.culprits, False)
    assert any("second reading" in text for text in verdict.missing)


@pytest.mark.parametrize("case", PROVEN, ids=lambda case: case.name)
def test_nothing_is_proven_while_a_rank_gets_on(case: Case) -> None:
    for number in range(len(case.evidence.readings[0].ranks)):
        assert not judge(_with_a_step_between(case.evidence, number)).proven


def _with_a_step_between(evidence: HangEvidence, number: int) -> HangEvidence:
    first, last = evidence.readings
    ranks = list(last.ranks)
    ranks[number] = replace(ranks[number], step=ranks[number].step + 1)
    return replace(evidence, readings=(first, replace(last, ranks=tuple(ranks))))


def test_every_code_is_planted() -> None:
    planted = {case.code for case in ALL} - {None}
    assert planted == {code.code for code in CATALOGUE.values() if code.kind == "hang"}
    assert len(ALL) >= 90


def test_only_what_may_be_proven_is() -> None:
    proven = {case.code for case in PROVEN if case.code}
    assert all(CATALOGUE[code].severity_rule == "proven" for code in proven)
