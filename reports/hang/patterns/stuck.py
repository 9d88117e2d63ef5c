"""A living rank that nobody keeps waiting does not come: stopped, stuck in native code, or elsewhere.

None of these can be told from one that is merely slow, so none is a proof.
"""

from __future__ import annotations

from collections.abc import Collection

from diag.reports.hang.activity import Activity, activity
from diag.reports.hang.model import Accusation
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import most_common
from diag.reports.hang.words import verb, wait_words, who

_HINTS = {
    "stopped": "let it go on with `kill -CONT PID`; find who stopped it: a debugger, a job "
    "scheduler, Ctrl-Z",
    "native": "native code must release the GIL before it waits; a thread of this process can do "
    "nothing meanwhile",
    "kernel": "look at the disk or network file system it uses: `dmesg`, `mount`",
    "device": "look at the GPU: `nvidia-smi`, Xid errors in `dmesg`; an endless kernel, or a "
    "collective that another rank never joined",
    "loader": "look at the loader's worker: a lock or handle inherited over fork, a file system "
    "that does not answer; try num_workers=0",
    "sleep": "look for a sleep or a retry loop under a condition that differs between ranks",
    "lock": "look for a lock that is never released, or a thread that never ends",
    "read": "look at what it reads from: a file system that does not answer, a pipe nobody writes to",
    "network": "look at the other end of what it reads from",
    "child": "look at the process it waits for",
    "compute": "if this work is meant for one rank, let the others not wait for it, or raise "
    "--hang-timeout",
    "unknown": "look at this line: it is where this rank differs from the others",
}
_NO_LINE = "look whether it is still alive, and at its log"
_CODES = {"stopped": "hang-stopped-rank", "native": "hang-native-stuck",
          "kernel": "hang-native-stuck", "device": "hang-native-stuck"}  # fmt: skip


def stopped(scene: Scene) -> Accusation | None:
    """Before all pauses: a stopped rank finishes nothing, whatever it was at."""
    found = {r for r, rank in scene.ranks.items() if rank.state == "stopped"}
    # One stopped inside a collective holds up the others even where all have entered it.
    blamed = found & scene.awaited or found - set(scene.waits) or _holding_up(scene, found)
    return _accuse(scene, blamed) if blamed and scene.blocked - blamed else None


def _holding_up(scene: Scene, found: set[int]) -> set[int]:
    return {rank for rank in found if not scene.waits[rank]}


def elsewhere(scene: Scene) -> Accusation | None:
    """Those who neither come nor say that they are busy with something that takes its time."""
    alive = {rank for rank in scene.awaited if not scene.is_gone(rank)}
    flagged = {rank for rank in alive if rank in scene.evidence.flagged}
    return _accuse(scene, alive - flagged) if alive - flagged else None


def _accuse(scene: Scene, culprits: Collection[int]) -> Accusation:
    doing = {rank: doing_of(scene, rank) for rank in sorted(culprits)}
    # The worst-named first: a stopped or natively stuck rank explains itself.
    told = sorted({(_rank_of(one.kind), one.kind) for one in doing.values()})
    kind = told[0][1]
    place = most_common(one.place for one in doing.values() if one.kind == kind)
    waiting = scene.waiting_for(frozenset(culprits))
    pending = scene.pending_of(waiting)
    where = most_common(scene.place_in_collective(rank) for rank in waiting)
    return Accusation(
        code=_CODES.get(kind, "hang-missing-rank"),
        culprits=tuple(doing),
        waiting=waiting,
        pending=pending,
        location=place,
        why=f"{_told(scene, doing)}{wait_words(waiting, pending, where)}",
        hint=_hint(scene, kind, tuple(doing)) if place is not None or kind in _CODES else _NO_LINE,
    )


def _hint(scene: Scene, kind: str, culprits: tuple[int, ...]) -> str:
    pids = [str(scene.ranks[rank].pid) for rank in culprits if rank in scene.ranks]
    return _HINTS[kind].replace("PID", " ".join(pids))


_ORDER = ("stopped", "native", "kernel", "device")


def _rank_of(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _told(scene: Scene, doing: dict[int, Activity]) -> str:
    """ "rank 3 sleeps at train.py:88 in main; rank 4 computes at …"."""
    grouped: dict[str, list[int]] = {}
    for rank, one in doing.items():
        grouped.setdefault(one.sentence, []).append(rank)
    return "; ".join(_said(scene, words, grouped[words]) for words in sorted(grouped))


def _said(scene: Scene, words: str, ranks: list[int]) -> str:
    if words == "is":
        unread = ", and could not be read" if set(ranks) <= scene.unread else ""
        return f"{who(ranks)} {verb(ranks, 'does', 'do')} not come{unread}"
    return f"{who(ranks)} {words}" if len(ranks) == 1 else f"{who(ranks)} each {words}"


def doing_of(scene: Scene, number: int) -> Activity:
    """What `rank` is at."""
    if number not in scene.ranks:
        return Activity("unknown", "is", None)
    now = scene.ranks[number]
    told = {r: any(g.source == "flight" for g in one.groups) for r, one in scene.ranks.items()}
    others = any(has for rank, has in told.items() if rank != number)
    return activity(now, scene.before.get(number, now), told[number], others)
