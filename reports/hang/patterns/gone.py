"""A rank has ended without an exception of its own: it left early, or it was killed."""

from __future__ import annotations

import signal
from collections.abc import Collection

from diag.record.evidence import RankEvidence
from diag.reports.hang.model import Accusation
from diag.reports.hang.patterns.victims import certain, echoing, suffering, victims
from diag.reports.hang.scene import Scene
from diag.reports.hang.signatures import kind
from diag.reports.hang.stacks import most_common, place_of
from diag.reports.hang.uneven import UNEVEN_HINT
from diag.reports.hang.views import collective
from diag.reports.hang.words import at, signal_words, verb, who

_OOM_HINT = (
    "the machine or the container ran out of memory: smaller batches, fewer loader workers, "
    "or a higher limit"
)
_SIGNAL_HINTS = {
    "SIGKILL": "not sent by diag: look for `Out of memory` in dmesg, and for the limits of the "
    "container or of the job",
    "SIGBUS": "often a full /dev/shm: give the container more (--shm-size), or use fewer loader "
    "workers",
    "SIGSEGV": "a crash in native code: PYTHONFAULTHANDLER=1 prints where",
    "SIGABRT": "native code gave up: its last words are in the rank's log",
}
_EXIT_HINT = (
    "all ranks must leave together: look for a `return`, `break` or sys.exit() that only some "
    "ranks reach"
)


def gone(scene: Scene) -> Accusation | None:
    found = _accused(scene)
    if not found:
        return None
    awaited = scene.awaited & found
    # Those that somebody waits for; without a graph, or where the others failed too, the killed.
    culprits = awaited or _first_kind(scene, found)
    waiting = victims(scene, culprits)
    if not waiting and all(_left_well(scene.ranks[rank]) for rank in culprits):
        return None  # it is done, and nobody needs it
    return _accusation(scene, tuple(sorted(culprits)), waiting)


def _accused(scene: Scene) -> frozenset[int]:
    ended = frozenset(rank for rank in scene.ranks if scene.is_gone(rank))
    by_itself = ended - echoing(scene)
    # A lone SIGTERM is not the launcher's: that follows a failure.
    told_to_end = {r for r in ended if scene.ranks[r].failure is None}
    return by_itself or frozenset(told_to_end)


def _first_kind(scene: Scene, found: Collection[int]) -> frozenset[int]:
    """Ends that need no other cause: left early, then killed."""
    left = frozenset(rank for rank in found if not _is_killed(scene.ranks[rank]))
    needed = scene.blocked or echoing(scene)
    return left if left and needed else frozenset(found) - left or left


def _is_killed(rank: RankEvidence) -> bool:
    return bool(rank.oom_killed) or (rank.exit_code is not None and rank.exit_code < 0)


def _left_well(rank: RankEvidence) -> bool:
    return rank.exit_code in (0, None) and not rank.oom_killed


def _accusation(scene: Scene, culprits: tuple[int, ...], waiting: tuple[int, ...]) -> Accusation:
    pending = scene.pending_of(waiting)
    uneven = all(_ran_out(scene, rank, waiting) for rank in culprits)
    place = most_common(place_of(scene.ranks[rank]) for rank in culprits)
    ends = sorted({how_it_ended(scene.ranks[rank]) for rank in culprits})
    batches = f": {_batches(scene, culprits)}" if uneven else ""
    last = f", last seen{at(place)}" if place is not None else ""
    why = f"{who(culprits)} {' or '.join(ends)}{batches}{last}{suffering(scene, waiting)}"
    return Accusation(
        code="hang-uneven-inputs" if uneven else "hang-dead-rank",
        culprits=culprits,
        waiting=waiting,
        pending=pending,
        location=place,
        why=why,
        hint=UNEVEN_HINT if uneven else _hint(scene.ranks[culprits[0]], ends),
        provable=certain(scene, culprits),
    )


def _batches(scene: Scene, culprits: tuple[int, ...]) -> str:
    words = f"{verb(culprits, 'it', 'they')} had fewer batches than the others"
    known = all(scene.ranks[rank].loader_ended for rank in culprits)
    return words if known else f"{words}, or left the loop early"


def how_it_ended(rank: RankEvidence) -> str:
    """ "was killed by SIGKILL", to follow the rank."""
    code = rank.exit_code
    if rank.oom_killed:
        return "was killed by the kernel for want of memory"
    if code is not None and code < 0:
        ended = "ended" if code == -signal.SIGTERM else "killed"
        return f"was {ended} by {signal_words(code)}"
    if code:
        return f"exited with code {code}"
    if rank.ended in ("script", "max-steps") or code == 0:
        return "ended its script"
    return "is gone"


def _hint(rank: RankEvidence, ends: Collection[str]) -> str:
    if rank.oom_killed:
        return _OOM_HINT
    if rank.exit_code is not None and rank.exit_code < 0:
        name = signal_words(rank.exit_code)
        return _SIGNAL_HINTS.get(name, "its last words are in the rank's log")
    return _EXIT_HINT


def _ran_out(scene: Scene, number: int, waiting: Collection[int]) -> bool:
    """Whether it ended well for want of batches: the rest is in the loop that it ran too."""
    rank = scene.ranks[number]
    if rank.exit_code not in (0, None) or rank.ended == "exception" or rank.oom_killed:
        return False
    if rank.loader_ended is False or any(scene.ranks[r].loader_ended for r in waiting):
        return False
    done = {kind(c) for group in rank.groups for c in group.recent}
    theirs = [
        kind(inside)
        for waiter in waiting
        for view, seq in scene.waits_in(waiter)
        if (inside := collective(view.progress[waiter], seq)) is not None
    ]
    return bool(theirs) and all(one in done for one in theirs)
