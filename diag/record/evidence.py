"""What was found on every rank when a run stood still: facts of one reading, no judgement.

The watcher writes `hang/<number>/evidence.json` into the run directory: two readings a second
apart, each with every rank of every node. Whoever judges needs nothing else, so a verdict can be
made again anywhere. What could not be read is None, and `missing` says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["running", "sleeping", "disk-sleep", "stopped", "zombie", "gone", "unknown"]


@dataclass(frozen=True)
class Collective:
    """One collective as a rank issued it.

    Attributes:
        seq: its number in its group, from 0, as this rank counts.
        op: "all_reduce", "broadcast", "barrier" …, torch's own names.
        num_bytes, dtype: of the largest tensor argument; dtype "" where unknown.
        root: global rank, for collectives that have one.
        site: "file:line" of the user's code; "" where unknown (issued from C++).
        shape: sizes of the inputs where known (from the flight recorder), else ().
    """

    seq: int
    op: str
    num_bytes: int = 0
    dtype: str = ""
    root: int | None = None
    site: str = ""
    shape: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class GroupProgress:
    """How far a rank is in one process group.

    Attributes:
        group: the same name on all its ranks.
        ranks: its members, global; () where unknown.
        entered: collectives issued so far (the last one's seq + 1).
        completed: of them, released or retired; a group is pending while entered > completed.
        recent: the last ones issued, oldest first (at most 64).
        pending_since_ns: CLOCK_MONOTONIC of the rank's node when it began to block on the oldest
            one not completed; 0 where nothing blocks.
        source: "probes" (seen from Python) or "flight" (torch's flight recorder).
        order: position of the group's newest collective among all the rank issued, over groups.
    """

    group: str
    ranks: tuple[int, ...]
    entered: int
    completed: int
    recent: tuple[Collective, ...] = ()
    pending_since_ns: int = 0
    source: Literal["probes", "flight"] = "probes"
    order: int = 0


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str
    native: bool = False


@dataclass(frozen=True)
class Thread:
    """One thread's stack, innermost frame first; never any locals."""

    name: str
    frames: tuple[Frame, ...]
    main: bool = False
    owns_gil: bool = False
    active: bool = False  # py-spy: on a core or about to be


@dataclass(frozen=True)
class Failure:
    """An exception as the rank wrote it down before it unwound, or on its way out."""

    type: str
    message: str
    time_ns: int  # wall clock
    file: str = ""  # innermost frame of the user's code
    line: int = 0
    function: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class ChildProcess:
    """A loader worker or another child of a rank."""

    pid: int
    state: State
    command: str
    threads: tuple[Thread, ...] = ()


@dataclass(frozen=True)
class RankEvidence:
    """One rank in one reading.

    Attributes:
        state: from /proc/<pid>/stat; "gone" once the process has ended.
        exit_code: 0…255, or -n for signal n; None while it lives or where unknown.
        ended: the worker's own word ("script", "exception", "max-steps"); None where it wrote none.
        step: optimizer steps completed; -1 before the first.
        phase: as of its last beat ("forward", "exposed_comm", "checkpoint", "evaluation" …).
        beat_age_s: since its last beat.
        waits_entered, waits_completed: blocking waits so far.
        cpu_s: CPU time of the process so far; two readings tell spinning from sleeping.
        main_cpu_s: the main thread's.
        wchan, syscall: what the main thread waits in, in the kernel's words; "" where unreadable.
        oom_killed: the kernel killed it for memory; None where that cannot be known.
        loader_ended: the loader its training steps read from has given its last batch and was
            not begun again; None where unknown.
        missing: what could not be read, and why ("stacks: py-spy: Permission denied").
    """

    rank: int
    node: int
    host: str
    pid: int
    state: State
    exit_code: int | None = None
    ended: str | None = None
    failure: Failure | None = None
    step: int = -1
    phase: str = ""
    beat_age_s: float | None = None
    waits_entered: int = 0
    waits_completed: int = 0
    median_step_s: float | None = None
    groups: tuple[GroupProgress, ...] = ()
    threads: tuple[Thread, ...] = ()
    children: tuple[ChildProcess, ...] = ()
    cpu_s: float | None = None
    main_cpu_s: float | None = None
    rss_bytes: int | None = None
    wchan: str = ""
    syscall: str = ""
    oom_killed: bool | None = None
    loader_ended: bool | None = None
    gpu: str = ""  # in words: utilisation, Xid; "" without one
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """All ranks at one moment (each node by its own clocks)."""

    time_ns: int  # wall clock of the node that put it together
    ranks: tuple[RankEvidence, ...]


@dataclass(frozen=True)
class HangEvidence:
    """What a verdict is made from.

    Attributes:
        still_s: for how long no rank made progress when the first reading began.
        threshold_s: what counts as too long: max(3 s, 10 median steps).
        limit_s: --hang-timeout; None for off.
        readings: the first, and a second about a second later (one where there was no time).
        flagged: what the ranks said they were doing: "checkpoint", "evaluation", "compile",
            "first-batch", "startup", by rank.
    """

    run: str
    world_size: int
    backend: str
    still_s: float
    threshold_s: float
    limit_s: float | None
    readings: tuple[Reading, ...]
    flagged: dict[int, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
