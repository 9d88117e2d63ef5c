"""Who suffers from ranks that are gone: those that wait for them, and those that failed for it."""

from __future__ import annotations

import signal
from collections.abc import Collection

from diag.reports.hang.echoes import is_echo, is_from_collective
from diag.reports.hang.scene import Scene

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
