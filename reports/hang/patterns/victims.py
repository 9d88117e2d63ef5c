"""Who suffers from ranks that are gone: those that wait for them, and those that failed for it."""

from __future__ import annotations

import signal
from collections.abc import Collection

from diag.reports.hang.echoes import is_echo, is_from_collective
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import most_common
from diag.reports.hang.words import wait_words, who

# The launcher ends what is left of a failed job by this.
_ENDED_BY_LAUNCHER = -signal.SIGTERM


def victims(scene: Scene, culprits: Collection[int]) -> tuple[int, ...]:
    """Blocked ranks that wait for the culprits, and those that failed in consequence."""
    waiting = scene.waiting_for(frozenset(culprits))
    return tuple(sorted({*waiting, *echoing(scene)} - set(culprits)))


def echoing(scene: Scene) -> frozenset[int]:
    """Ranks whose own end or error only follows from another's."""
    return frozenset(
        number
        for number, rank in scene.ranks.items()
        if rank.exit_code == _ENDED_BY_LAUNCHER
        or (rank.failure and (is_echo(rank.failure) or is_from_collective(rank.failure)))
    )


def certain(scene: Scene, culprits: Collection[int]) -> bool:
    """Whether it is known, not merely likely, that others cannot go on without the culprits."""
    return scene.keep_waiting(frozenset(culprits)) or bool(echoing(scene) - set(culprits))


def suffering(scene: Scene, found: Collection[int]) -> str:
    """ "; ranks 0 and 2 wait in …; rank 3 failed for want of it"; "" where nobody suffers."""
    waiting = tuple(rank for rank in found if rank in scene.blocked)
    failed = [rank for rank in found if rank not in scene.blocked]
    where = most_common(scene.place_in_collective(rank) for rank in waiting)
    told = wait_words(waiting, scene.pending_of(waiting), where)
    return told + (f"; {who(failed)} ended in consequence" if failed else "")
