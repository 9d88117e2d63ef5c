"""Neither the ranks' numbers nor the order in which anything was read decides who is to blame."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from diag.record.evidence import GroupProgress, HangEvidence, RankEvidence, Reading
from diag.reports.hang.model import Verdict
from diag.reports.hang.verdict import judge
from helpers.hang_cases import ALL, Case


def numbers_of(evidence: HangEvidence) -> list[int]:
    told = {rank.rank for reading in evidence.readings for rank in reading.ranks}
    return sorted(told | set(range(evidence.world_size)))


def renamed(evidence: HangEvidence, name: dict[int, int], shuffle: random.Random) -> HangEvidence:
    """The same story with the ranks' numbers exchanged and every list in another order."""
    readings = tuple(
        Reading(r.time_ns, mixed([_rank(rank, name, shuffle) for rank in r.ranks], shuffle))
        for r in evidence.readings
    )
    flagged = {name[rank]: flag for rank, flag in evidence.flagged.items()}
    return replace(evidence, readings=readings, flagged=flagged)


def mixed(items: list[RankEvidence], shuffle: random.Random) -> tuple[RankEvidence, ...]:
    return tuple(shuffle.sample(items, len(items)))


def _rank(rank: RankEvidence, name: dict[int, int], shuffle: random.Random) -> RankEvidence:
    groups = [_group(group, name, shuffle) for group in rank.groups]
    return replace(rank, rank=name[rank.rank], groups=tuple(shuffle.sample(groups, len(groups))))


def _group(group: GroupProgress, name: dict[int, int], shuffle: random.Random) -> GroupProgress:
    members = [name[rank] for rank in group.ranks]
    recent = tuple(replace(c, root=None if c.root is None else name[c.root]) for c in group.recent)
    return replace(group, ranks=tuple(shuffle.sample(members, len(members))), recent=recent)


def essence(verdict: Verdict, name: dict[int, int]) -> tuple[object, ...]:
    """All of a verdict but its sentences, with the ranks' names as they were."""

    def ranks(found: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(name[rank] for rank in found))

    pending = verdict.collective
    return (
        verdict.code,
        verdict.proven,
        verdict.pause,
        ranks(verdict.culprits),
        ranks(verdict.waiting),
        verdict.location,
        pending and (pending.op, pending.seq, pending.group, pending.num_bytes, pending.dtype),
        [(ranks(site.ranks), site.what, site.place) for site in verdict.sites],
        verdict.hint,
        verdict.seconds_to_verdict,
        len(verdict.evidence),
    )


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_names_and_order_change_nothing_but_names(case: Case) -> None:
    numbers = numbers_of(case.evidence)
    same = {rank: rank for rank in numbers}
    expected = essence(judge(case.evidence), same)
    for seed in range(6):
        shuffle = random.Random(seed)
        name = dict(zip(numbers, shuffle.sample(numbers, len(numbers)), strict=True))
        back = {new: old for old, new in name.items()}
        verdict = judge(renamed(case.evidence, name, shuffle))
        assert essence(verdict, back) == expected, (name, verdict.why)
