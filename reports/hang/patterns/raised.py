"""A rank failed by an exception of its own; the others wait for it, or echo its end."""

from __future__ import annotations

from diag.record.evidence import Failure
from diag.reports.hang.echoes import is_echo, is_from_collective
from diag.reports.hang.model import Accusation
from diag.reports.hang.patterns.mismatch import mismatches
from diag.reports.hang.patterns.victims import certain, suffering, victims
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import failure_place, most_common, place_of
from diag.reports.hang.words import at, first_line, verb, who


def raised(scene: Scene) -> Accusation | None:
    own = {rank: failure for rank, failure in _failures(scene).items() if not is_echo(failure)}
    if mismatches(scene):
        # The backend noticed that the ranks disagree: the mismatch itself says who.
        own = {rank: failure for rank, failure in own.items() if not is_from_collective(failure)}
    if not own:
        return None
    first = min(own.values(), key=lambda failure: (failure.time_ns, _same(failure)))
    culprits = tuple(sorted(rank for rank in own if _same(own[rank]) == _same(first)))
    place = most_common(failure_place(scene.ranks[r]) or place_of(scene.ranks[r]) for r in culprits)
    waiting = victims(scene, culprits)
    pending = scene.pending_of(waiting)
    message = first_line(first.message)
    what = f"{first.type}: {message}" if message else first.type
    gone = any(scene.is_gone(rank) for rank in culprits)
    return Accusation(
        code="hang-dead-rank",
        culprits=culprits,
        waiting=waiting,
        pending=pending,
        location=place,
        why=f"{who(culprits)} failed{at(place)}: {what}{suffering(scene, waiting)}",
        hint=f"mend the error that {verb(culprits, 'this rank', 'these ranks')} raised; what "
        "other ranks report about closed connections only follows from it",
        provable=gone and certain(scene, culprits),
    )


def _failures(scene: Scene) -> dict[int, Failure]:
    return {number: rank.failure for number, rank in scene.ranks.items() if rank.failure}


def _same(failure: Failure) -> tuple[str, str, int]:
    return failure.type, failure.file, failure.line
