"""When two ranks are in the same collective, and who of several differs."""

from __future__ import annotations

import pytest

from diag.record.evidence import Collective
from diag.reports.hang.signatures import departs, differs, minority, sides
from helpers.hangs import call, calls

A, B, C = ("all_reduce", 1), ("reduce", 2), ("barrier", 3)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (call(0), call(0), ""),
        (call(0), call(0, line=99), ""),
        (call(0), call(0, "broadcast"), "op"),
        (call(0), call(0, "nccl:all_reduce"), ""),
        (call(0), call(0, num_bytes=8), "size"),
        (call(0), call(0, num_bytes=0), ""),
        (call(0), call(0, dtype="int32"), "dtype"),
        (call(0), call(0, dtype=""), ""),
        (call(0, "broadcast", root=0), call(0, "broadcast", root=1), "root"),
        (call(0, "broadcast", root=0), call(0, "broadcast"), ""),
        (call(0, "all_gather"), call(0, "all_gather", num_bytes=8), "size"),
        (call(0, "reduce_scatter"), call(0, "reduce_scatter", num_bytes=8), "size"),
        (call(0, "gather"), call(0, "gather", num_bytes=8), ""),
        (call(0, "scatter"), call(0, "scatter", num_bytes=8), ""),
        (call(0, "all_to_all"), call(0, "all_to_all", num_bytes=8), ""),
        (call(0, "all_to_all"), call(0, "all_to_all", dtype="int32"), "dtype"),
        (call(0, "send"), call(0, "recv", num_bytes=8), ""),
        (call(0, "send"), call(0, "all_reduce"), ""),
    ],
)
def test_in_what_two_calls_differ(one: Collective, other: Collective, expected: str) -> None:
    assert differs(one, other) == differs(other, one) == expected


@pytest.mark.parametrize(
    ("ops", "accused"),
    [
        ("aaa", []),
        ("aab", [2]),
        ("abb", [0]),
        ("ab", [0, 1]),
        ("aabb", [0, 1, 2, 3]),
        ("aaabbc", [3, 4, 5]),
        ("abc", [0, 1, 2]),
        ("a", []),
    ],
)
def test_the_majority_is_believed(ops: str, accused: list[int]) -> None:
    found, _ = minority(sides({rank: call(0, op) for rank, op in enumerate(ops)}))
    assert sorted(rank for side in found for rank in side.ranks) == accused


def test_what_is_partly_known_joins_its_like() -> None:
    entered = {0: call(0, num_bytes=0, dtype=""), 1: call(0), 2: call(0, "broadcast")}
    assert [side.ranks for side in sides(entered)] == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("history", "now", "expected"),
    [
        ([A, A, A], A, False),
        ([A, A, A], B, True),
        ([A, B, A, B], A, False),
        ([A, B, A, B], B, True),
        ([C, A, B, A, B, A, B], A, False),
        ([C, A, B, A, B, A, B], C, True),
        ([A, B, C], A, None),
        ([A], A, None),
        ([], A, None),
    ],
)
def test_a_rank_keeps_to_its_rhythm_or_not(
    history: list[tuple[str, int]], now: tuple[str, int], expected: bool | None
) -> None:
    assert departs(calls(*history), calls(now)[0]) is expected
