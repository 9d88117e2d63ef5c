"""Which part of a model goes where: arithmetic on bytes, before anything is loaded.

Places are filled in order, GPUs first, so that data crosses between two of them once. A part held
where nothing computes comes to the first computing place for its forward: room for the largest
of them is kept free there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diag.engine.amounts import in_words
from diag.engine.big.sizes import computes
from diag.errors import DiagError


@dataclass(frozen=True)
class Part:
    """What goes to one place together: a block, or all that share a weight.

    Attributes:
        names: its names in the device map.
        weights: bytes of its parameters, shared ones once.
        buffers: bytes of its buffers; they stay where it computes.
        fetched: most bytes that must be there at once to compute in it when it is held elsewhere.
    """

    names: tuple[str, ...]
    weights: int
    buffers: int = 0
    fetched: int = 0


Rooms = Mapping[str, float]
"""Bytes each place may hold, in the order they are filled; the disk's may be infinite."""


def assign(parts: Sequence[Part], rooms: Rooms, balanced: bool = True) -> list[str]:
    """The place of every part.

    Args:
        balanced: when the GPUs hold all of it, the fullest holds as little as can be; else each
            is filled before the next.

    Raises:
        DiagError: it fits nowhere, or a part is larger than the place that would compute it.
    """
    computing = computing_in(rooms)
    if not computing:
        raise DiagError(
            "nowhere-to-compute",
            "max_memory gives room to the disk alone; layers compute on a GPU or the CPU.",
            hint="Give 'cpu' room for at least the largest block.",
        )
    places = _with_reserve(parts, rooms, computing)
    if balanced and set(places) <= set(computing):
        return _leveled(parts, {place: rooms[place] for place in computing})
    return places


def computing_in(places: Mapping[str, object]) -> list[str]:
    """Where layers compute: the GPUs among `places`, in order; without one, the CPU."""
    return [p for p in places if computes(p)] or [p for p in places if p == "cpu"]


def _with_reserve(parts: Sequence[Part], rooms: Rooms, computing: Sequence[str]) -> list[str]:
    start, reserve = computing[0], 0
    while True:
        places = _fill(parts, {**rooms, start: rooms[start] - reserve}, computing)
        if places is None:
            raise _too_small(parts, rooms)
        waiting = [p for p, place in zip(parts, places, strict=True) if place not in computing]
        needed = max((p.fetched for p in waiting), default=0) + sum(p.buffers for p in waiting)
        if needed <= reserve:
            return places
        if needed > rooms[start]:
            raise _too_large(max(waiting, key=lambda p: p.fetched), needed, start, rooms[start])
        reserve = needed  # larger each time and never above the room: this ends


def _fill(parts: Sequence[Part], rooms: Rooms, computing: Sequence[str]) -> list[str] | None:
    """Place after place in order, no part before its predecessors; None: there is no room."""
    places: list[str] = []
    remaining = iter(rooms.items())
    place, room = next(remaining)
    for part in parts:
        while (held := part.weights + part.buffers * (place in computing)) > room:
            following = next(remaining, None)
            if following is None:
                return None
            place, room = following
        room -= held
        places.append(place)
    return places


def _leveled(parts: Sequence[Part], rooms: Rooms) -> list[str]:
    """The filling of `rooms`, which hold all, whose fullest place is the least full."""
    low, high = 0, math.ceil(max(rooms.values()))
    best: list[str] = []
    while low <= high:
        cap = (low + high) // 2
        places = _fill(parts, {p: min(room, cap) for p, room in rooms.items()}, list(rooms))
        if places is None:
            low = cap + 1
        else:
            best, high = places, cap - 1
    return best


def _too_large(part: Part, needed: int, start: str, room: float) -> DiagError:
    return DiagError(
        "block-too-large",
        f"{part.names[0] or 'the model'!r} needs {in_words(needed)} on {start} while it computes; "
        f"there is room for {in_words(room)}.",
        hint=f"Give {start} more in max_memory, load with a smaller dtype=, or name smaller "
        "classes in no_split_module_classes.",
    )


def _too_small(parts: Sequence[Part], rooms: Rooms) -> DiagError:
    total = sum(part.weights for part in parts)
    known = ", ".join(f"{in_words(room)} on {p}" for p, room in rooms.items() if room < math.inf)
    return DiagError(
        "model-too-large",
        f"The model's weights are {in_words(total)}; max_memory has room for {known}.",
        hint="Raise max_memory, load with a smaller dtype=, or leave 'disk' out of max_memory: "
        "it is then used without a limit.",
    )
