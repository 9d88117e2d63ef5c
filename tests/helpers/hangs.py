"""Evidence of hangs, planted literally: a few words per rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diag.record.evidence import (
    ChildProcess,
    Collective,
    Frame,
    GroupProgress,
    HangEvidence,
    RankEvidence,
    Reading,
    Thread,
)

TRAIN = "/home/me/train.py"
TORCH = "/usr/lib/python3.11/site-packages/torch"
C10D = f"{TORCH}/distributed/distributed_c10d.py"
SECOND = 10**9
LOOP = ("all_reduce", 41)  # what every step of the planted loop does, and its line


def call(seq: int, op: str = "all_reduce", line: int = 41, **details: Any) -> Collective:
    given: dict[str, Any] = {"num_bytes": 4096, "dtype": "float32", "site": f"{TRAIN}:{line}"}
    if op == "barrier":
        given |= {"num_bytes": 0, "dtype": ""}
    return Collective(seq, op, **(given | details))


def calls(*ops: tuple[str, int] | Collective) -> tuple[Collective, ...]:
    """Numbered from 0."""
    made = [op if isinstance(op, Collective) else call(0, *op) for op in ops]
    return tuple(replace(one, seq=seq) for seq, one in enumerate(made))


def group(
    *ops: tuple[str, int] | Collective,
    ranks: Sequence[int] = (),
    inside: bool = False,
    name: str = "0",
    source: Any = "probes",
) -> GroupProgress:
    """ranks: all, unless given. inside: still in the last one, and blocked on it."""
    recent = calls(*ops)
    blocked = inside and source == "probes"
    return GroupProgress(
        name,
        tuple(ranks),
        len(recent),
        len(recent) - inside,
        recent,
        pending_since_ns=SECOND if blocked else 0,
        source=source,
    )


def main(*frames: tuple[str, int, str] | Frame, **details: Any) -> tuple[Thread, ...]:
    """The main thread, innermost frame first."""
    made = tuple(f if isinstance(f, Frame) else Frame(*f) for f in frames)
    return (Thread("MainThread", made, main=True, **details),)


def in_collective(line: int = 41, op: str = "all_reduce") -> tuple[Thread, ...]:
    return main((C10D, 3000, op), (TRAIN, line, "train"), (TRAIN, 200, "<module>"))


def rank(number: int, *groups: GroupProgress, **details: Any) -> RankEvidence:
    given: dict[str, Any] = {
        "node": 0,
        "host": "a",
        "pid": 100 + number,
        "state": "sleeping",
        "step": 5,
        "beat_age_s": 4.0,
        "groups": groups,
    }
    return RankEvidence(number, **(given | details))


def waiting(number: int, *groups: GroupProgress, line: int = 41, **details: Any) -> RankEvidence:
    """Blocked in the last collective of its (last) group."""
    op = groups[-1].recent[-1].op if groups and groups[-1].recent else "all_reduce"
    given: dict[str, Any] = {"phase": "exposed_comm", "threads": in_collective(line, op)}
    return rank(number, *groups, **(given | details))


def gone(number: int, *groups: GroupProgress, **details: Any) -> RankEvidence:
    return rank(number, *groups, **({"state": "gone"} | details))


def evidence(
    *ranks: RankEvidence,
    first: Sequence[RankEvidence] | None = None,
    readings: int = 2,
    flagged: Mapping[int, str] | None = None,
    **details: Any,
) -> HangEvidence:
    """Two readings, the same unless `first` is given."""
    taken = tuple(
        Reading(at * SECOND, tuple(_with_members(one, tuple(r.rank for r in ranks)) for one in of))
        for at, of in ((1, first or ranks), (2, ranks))
    )
    given: dict[str, Any] = {
        "run": "run",
        "world_size": len(ranks),
        "backend": "gloo",
        "still_s": 4.0,
        "threshold_s": 3.0,
        "limit_s": 600.0,
    }
    return HangEvidence(
        readings=taken[2 - readings :], flagged=dict(flagged or {}), **(given | details)
    )


def _with_members(one: RankEvidence, members: tuple[int, ...]) -> RankEvidence:
    return replace(one, groups=tuple(replace(g, ranks=g.ranks or members) for g in one.groups))


def worker(pid: int, *frames: tuple[str, int, str], state: Any = "sleeping") -> ChildProcess:
    loop = (f"{TORCH}/utils/data/_utils/worker.py", 349, "_worker_loop")
    return ChildProcess(pid, state, "python", main(*frames, loop))
