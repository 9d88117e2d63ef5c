"""The rank that does not come says what it is doing, and that takes its time: no hang."""

from __future__ import annotations

from diag.reports.hang.model import Accusation
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import most_common, place_of
from diag.reports.hang.words import at, verb, wait_words, who

_WORDS = {
    "checkpoint": "at a checkpoint",
    "evaluation": "at an evaluation",
    "compile": "compiling",
    "first-batch": "waiting for the first batch",
    "startup": "starting",
}


def paused(scene: Scene) -> Accusation | None:
    """Holds where everyone who is waited for is flagged, or everyone is in it together."""
    flagged = scene.evidence.flagged
    busy = scene.awaited & set(flagged)
    if scene.awaited - busy:
        return None
    together = not busy and not any(scene.waits.values())
    if together:
        busy = frozenset(rank for rank in scene.blocked if rank in flagged)
    if not busy:
        return None
    ranks = tuple(sorted(busy))
    names = sorted({flagged[rank] for rank in ranks})
    place = most_common(place_of(scene.ranks[rank]) for rank in ranks if rank in scene.ranks)
    waiting = tuple(sorted(scene.blocked)) if together else scene.waiting_for(busy)
    pending = scene.pending_of(waiting)
    where = most_common(scene.place_in_collective(rank) for rank in waiting)
    told = " or ".join(_WORDS.get(name, name) for name in names)
    return Accusation(
        code=None,
        culprits=ranks,
        waiting=waiting,
        pending=pending,
        location=place,
        pause=names[0],
        why=f"{who(ranks)} {verb(ranks, 'is', 'are')} {told}{at(place)}"
        f"{wait_words(waiting, pending, where)}",
        hint="no hang as far as can be seen; if it never ends, look at this line",
    )
