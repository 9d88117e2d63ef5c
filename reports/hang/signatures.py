"""Whether collectives that ranks entered under the same number are the same collective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diag.record.evidence import Collective

# Ranks may send each other different amounts in these.
_SIZED_FREELY = ("all_to_all", "alltoall", "gather", "scatter")
_POINT_TO_POINT = ("send", "recv", "isend", "irecv", "batch_isend", "coalesced")


@dataclass(frozen=True)
class Side:
    """The ranks that entered the same collective, and what they take it for."""

    collective: Collective
    ranks: tuple[int, ...]


def op_name(collective: Collective) -> str:
    """Without the backend that the flight recorder puts before it."""
    return collective.op.rpartition(":")[2]


def is_point_to_point(collective: Collective) -> bool:
    return op_name(collective).startswith(_POINT_TO_POINT)


def sized_freely(collective: Collective) -> bool:
    """Whether unequal sizes are legal in it."""
    return op_name(collective).startswith(_SIZED_FREELY)


def differs(one: Collective, other: Collective) -> str:
    """In what the two cannot be the same collective: "op", "size", "dtype", "root"; "" if in nothing.

    What is unknown of one of them (no bytes, no dtype, no root) differs in nothing.
    """
    if is_point_to_point(one) or is_point_to_point(other):
        return ""
    if op_name(one) != op_name(other):
        return "op"
    if one.root is not None and other.root is not None and one.root != other.root:
        return "root"
    if one.dtype and other.dtype and one.dtype != other.dtype:
        return "dtype"
    sizes = one.num_bytes and other.num_bytes and one.num_bytes != other.num_bytes
    return "size" if sizes and not sized_freely(one) else ""


def sides(entered: Mapping[int, Collective]) -> tuple[Side, ...]:
    """Ranks by the collective they entered under one number, the largest side first.

    Ties and members are in an order that depends on what the collectives are, and on the ranks'
    numbers only where even that is equal.
    """
    groups: list[tuple[Collective, list[int]]] = []
    # The best known signatures first, so that partly known ones find their side.
    for rank in sorted(entered, key=lambda r: (*_known_first(entered[r]), r)):
        mine = entered[rank]
        for first, ranks in groups:
            if not differs(first, mine):
                ranks.append(rank)
                break
        else:
            groups.append((mine, [rank]))
    found = [Side(first, tuple(sorted(ranks))) for first, ranks in groups]
    return tuple(sorted(found, key=lambda side: (-len(side.ranks), _known_first(side.collective))))


def _known_first(c: Collective) -> tuple[bool, bool, bool, str, str, int, int, str]:
    root = -1 if c.root is None else c.root
    unknown = (not c.dtype, not c.num_bytes, c.root is None)
    return (*unknown, op_name(c), c.dtype, c.num_bytes, root, c.site)


def minority(found: Iterable[Side]) -> tuple[tuple[Side, ...], tuple[Side, ...]]:
    """(accused, others): all but the largest side; where there is no single largest, everybody."""
    ordered = tuple(found)
    if len(ordered) > 1 and len(ordered[0].ranks) == len(ordered[1].ranks):
        return ordered, ()
    return ordered[1:], ordered[:1]


def kind(collective: Collective) -> tuple[str, str, str]:
    """What recurs from step to step: the call, wherever in the sequence."""
    return op_name(collective), collective.dtype, collective.site


def departs(history: Iterable[Collective], now: Collective) -> bool | None:
    """Whether `now` breaks the rhythm of what the same rank issued before; None without a rhythm.

    Args:
        history: what it issued before `now` in the same group, oldest first, without gaps.
    """
    kinds = [kind(c) for c in history]
    for period in range(1, len(kinds) // 2 + 1):
        tail = kinds[-min(len(kinds), 3 * period) :]
        if all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return kinds[-period] != kind(now)
    return None
