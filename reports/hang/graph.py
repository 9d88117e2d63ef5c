"""Who waits for whom, as a graph: where every chain of waiting ends."""

from __future__ import annotations

from collections.abc import Mapping, Set

Waits = Mapping[int, Set[int]]


def reachable(waits: Waits, start: Set[int]) -> frozenset[int]:
    """All of `start`, and everybody they wait for, directly or through others."""
    found = set(start)
    todo = list(start)
    while todo:
        new = waits.get(todo.pop(), frozenset()) - found
        found |= new
        todo.extend(new)
    return frozenset(found)


def reach(waits: Waits) -> dict[int, frozenset[int]]:
    """For each rank everybody it waits for, directly or through others; itself only in a cycle."""
    # Ranks that wait for the same ones (nearly all, in a large job) are worked out once.
    known = {frozenset(targets): frozenset[int]() for targets in waits.values()}
    for targets in known:
        known[targets] = reachable(waits, targets)
    return {rank: known[frozenset(targets)] for rank, targets in waits.items()}


def ends(waits: Waits) -> frozenset[int]:
    """Ranks that others wait for and that wait for nobody."""
    awaited = {rank for targets in waits.values() for rank in targets}
    return frozenset(rank for rank in awaited if not waits.get(rank))


def cycles(waits: Waits) -> tuple[frozenset[int], ...]:
    """Sets of ranks that wait for each other and for nobody else."""
    reached = reach(waits)
    sets = {reached[rank] for rank in waits if rank in reached[rank]}
    closed = (ring for ring in sets if all(reached.get(rank) == ring for rank in ring))
    return tuple(sorted(closed, key=sorted))
