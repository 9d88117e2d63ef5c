"""Where chains of waiting end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag.reports.hang.graph import cycles, ends, reach

WAITS = st.dictionaries(st.integers(0, 7), st.frozensets(st.integers(0, 7), max_size=3), max_size=8)


@pytest.mark.parametrize(
    ("waits", "at_the_end", "rings"),
    [
        ({}, [], []),
        ({0: {1}}, [1], []),
        ({0: {1}, 1: {2}, 3: {2}}, [2], []),
        ({0: {1}, 1: {0}}, [], [[0, 1]]),
        ({0: {1}, 1: {0}, 2: {0}}, [], [[0, 1]]),
        ({0: {1}, 1: {0, 2}}, [2], []),
        ({0: {1}, 1: {0}, 2: {3}, 3: {2}}, [], [[0, 1], [2, 3]]),
        ({0: {1}, 1: {2}, 2: {0}, 3: {4}}, [4], [[0, 1, 2]]),
    ],
)
def test_chains_end_where_nobody_waits_or_in_a_ring(
    waits: dict[int, set[int]], at_the_end: list[int], rings: list[list[int]]
) -> None:
    assert sorted(ends(waits)) == at_the_end
    assert [sorted(ring) for ring in cycles(waits)] == rings


@given(WAITS)
def test_reach_is_the_closure(waits: dict[int, frozenset[int]]) -> None:
    closure = reach(waits)
    for rank, targets in waits.items():
        through = frozenset().union(*(closure.get(t, frozenset()) for t in targets))
        assert closure[rank] == targets | through


@given(WAITS)
def test_every_chain_ends_somewhere(waits: dict[int, frozenset[int]]) -> None:
    final = ends(waits).union(*cycles(waits))
    for targets in reach(waits).values():
        assert not targets or targets & final
