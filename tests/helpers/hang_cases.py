"""Planted hangs with the verdict that is right: what, by whom, at which line, whether proven."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diag.record.evidence import Collective, Failure, Frame, HangEvidence, RankEvidence
from helpers.hangs import (
    LOOP,
    TORCH,
    TRAIN,
    call,
    evidence,
    gone,
    group,
    in_collective,
    main,
    rank,
    waiting,
    worker,
)

FIVE, SIX = [LOOP] * 5, [LOOP] * 6
BARRIER, EXTRA = ("barrier", 60), ("broadcast", 50)
STDLIB = "/usr/lib/python3.11"
FLIGHT = "flight"


@dataclass(frozen=True)
class Case:
    """line: of the culprits; None where there is none to name."""

    name: str
    evidence: HangEvidence
    code: str | None
    culprits: tuple[int, ...]
    line: int | None
    proven: bool = False
    pause: str | None = None


def behind(number: int, **details: object) -> RankEvidence:
    """Has done all but the collective that the others are in."""
    return rank(number, group(*FIVE), **details)


def ahead(number: int, **details: object) -> RankEvidence:
    """Is in the sixth."""
    return waiting(number, group(*SIX, inside=True), **details)


def error(kind: str, message: str, line: int = 77, at: int = 10) -> Failure:
    return Failure(kind, message, at, TRAIN, line, "train", "Traceback …")


ECHO = error("RuntimeError", "[gloo/tcp/pair.cc] Connection closed by peer [10.0.0.1]:1", 41, 11)
PREAMBLE = error("RuntimeError", "[gloo] op.preamble.length <= op.nbytes. 8192 vs 4096", 41)


def among_two(other: RankEvidence, **details: object) -> HangEvidence:
    """Ranks 0 and 2 wait for rank 1."""
    return evidence(ahead(0), other, ahead(2), **details)  # type: ignore[arg-type]


def inside(number: int, *calls: tuple[str, int] | Collective, line: int = 41) -> RankEvidence:
    return waiting(number, group(*calls, inside=True), line=line)


def with_flight(
    one: RankEvidence, *calls: tuple[str, int] | Collective, blocked: bool
) -> RankEvidence:
    """Its flight recorder answered as well; it knows no lines."""
    known = [replace(call(0, *c), site="") if isinstance(c, tuple) else c for c in calls]
    return replace(one, groups=(*one.groups, group(*known, inside=blocked, source=FLIGHT)))


DEAD = [
    Case(
        "raised while the others wait",
        among_two(gone(1, group(*FIVE), exit_code=1, failure=error("ValueError", "bad batch"))),
        "hang-dead-rank", (1,), 77, True,
    ),
    Case(
        "raised, and hangs in its own teardown",
        among_two(behind(1, failure=error("ValueError", "bad batch"), threads=main((TRAIN, 9, "f")))),
        "hang-dead-rank", (1,), 77,
    ),
    Case(
        "raised; the peers echo it",
        evidence(
            gone(0, group(*SIX), exit_code=1, failure=ECHO),
            gone(1, group(*FIVE), exit_code=1, failure=error("ValueError", "bad batch")),
            gone(2, group(*SIX), exit_code=-15),
        ),
        "hang-dead-rank", (1,), 77, True,
    ),
    Case(
        "the earliest of two errors",
        evidence(
            gone(0, group(*SIX), exit_code=1, failure=error("KeyError", "late", 78, at=30)),
            gone(1, group(*FIVE), exit_code=1, failure=error("ValueError", "first", 77, at=20)),
            ahead(2),
        ),
        "hang-dead-rank", (1,), 77, True,
    ),
    Case(
        "one error on two ranks is of both",
        evidence(
            ahead(0),
            gone(1, group(*FIVE), exit_code=1, failure=error("ValueError", "a", at=20)),
            gone(2, group(*FIVE), exit_code=1, failure=error("ValueError", "b", at=21)),
        ),
        "hang-dead-rank", (1, 2), 77, True,
    ),
    Case(
        "SIGKILL",
        among_two(gone(1, group(*FIVE), exit_code=-9)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "SIGKILL inside the collective: all have entered",
        evidence(
            gone(0, group(*SIX), exit_code=1, failure=ECHO),
            gone(1, group(*SIX), exit_code=-9),
            gone(2, group(*SIX), exit_code=1, failure=ECHO),
        ),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "SIGTERM to one rank only",
        among_two(gone(1, group(*FIVE), exit_code=-15)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "out of memory",
        among_two(gone(1, group(*FIVE), exit_code=-9, oom_killed=True)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "segmentation fault",
        among_two(gone(1, group(*FIVE), exit_code=-11)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "os._exit(3)",
        among_two(gone(1, group(*FIVE), exit_code=3)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "sys.exit(1)",
        among_two(gone(1, group(*FIVE), exit_code=1, ended="script")),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "sys.exit(1), the peers echo it",
        evidence(
            gone(0, group(*SIX), exit_code=1, failure=ECHO),
            gone(1, group(*FIVE), exit_code=1, ended="script"),
        ),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "an early return: the loader had more",
        among_two(gone(1, group(*FIVE), exit_code=0, ended="script", loader_ended=False)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "left before a barrier that it never made",
        evidence(
            inside(0, *FIVE, BARRIER, line=60),
            gone(1, group(*FIVE), exit_code=0, ended="script"),
            inside(2, *FIVE, BARRIER, line=60),
        ),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "a zombie is gone",
        among_two(rank(1, group(*FIVE), state="zombie", exit_code=-9)),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "gone before its first collective",
        evidence(
            waiting(0, group(LOOP, inside=True)),
            gone(1, exit_code=1, step=-1),
            waiting(2, group(LOOP, inside=True)),
        ),
        "hang-dead-rank", (1,), None, True,
    ),
    Case(
        "gone, and nothing else is known of it",
        among_two(gone(1, beat_age_s=None)),
        "hang-dead-rank", (1,), None, True,
    ),
    Case(
        "two killed at once",
        evidence(ahead(0), gone(1, group(*FIVE), exit_code=-9), gone(2, group(*FIVE), exit_code=-9)),
        "hang-dead-rank", (1, 2), 41, True,
    ),
    Case(
        "killed, while another is merely slow behind it",
        evidence(
            ahead(0),
            gone(1, group(*FIVE), exit_code=-9),
            behind(2, threads=main((TRAIN, 88, "load"))),
        ),
        "hang-dead-rank", (1,), 41, True,
    ),
    Case(
        "without probes a death is still told",
        evidence(
            RankEvidence(0, 0, "a", 1, "sleeping", threads=in_collective()),
            RankEvidence(1, 0, "a", 2, "gone", exit_code=-9),
        ),
        "hang-dead-rank", (1,), None,
    ),
]  # fmt: skip

UNEVEN = [
    Case(
        "one batch fewer, then the script's end",
        among_two(gone(1, group(*FIVE), exit_code=0, ended="script", loader_ended=True)),
        "hang-uneven-inputs", (1,), 41, True,
    ),
    Case(
        "the same, nobody knows of the loaders",
        among_two(gone(1, group(*FIVE), exit_code=0, ended="script")),
        "hang-uneven-inputs", (1,), 41, True,
    ),
    Case(
        "one batch fewer, then a barrier",
        evidence(ahead(0), inside(1, *FIVE, BARRIER, line=60), ahead(2)),
        "hang-uneven-inputs", (1,), 60, True,
    ),
    Case(
        "the same with two ranks: the loop tells which",
        evidence(ahead(0), inside(1, *FIVE, BARRIER, line=60)),
        "hang-uneven-inputs", (1,), 60, True,
    ),
    Case(
        "one batch fewer, then the reduction of a metric",
        evidence(
            ahead(0, loader_ended=False),
            replace(inside(1, *FIVE, ("all_gather", 70), line=70), loader_ended=True),
            ahead(2, loader_ended=False),
        ),
        "hang-uneven-inputs", (1,), 70, True,
    ),
    Case(
        "two of three ran out, by their loaders' word",
        evidence(
            ahead(0, loader_ended=False),
            *(replace(inside(r, *FIVE, BARRIER, line=60), loader_ended=True) for r in (1, 2)),
        ),
        "hang-uneven-inputs", (1, 2), 60, True,
    ),
    Case(
        "the same, nobody knows of the loaders: the majority is believed",
        evidence(ahead(0), *(inside(r, *FIVE, BARRIER, line=60) for r in (1, 2))),
        "hang-mismatched-collective", (0,), 41, True,
    ),
    Case(
        "DDP's gradients against a barrier, in groups of their own",
        evidence(
            waiting(0, group(*[("gradients", 41)] * 6, inside=True, name="ddp0")),
            waiting(
                1,
                group(*[("gradients", 41)] * 5, name="ddp0"),
                group(BARRIER, inside=True),
                line=60,
            ),
            waiting(2, group(*[("gradients", 41)] * 6, inside=True, name="ddp0")),
        ),
        "hang-uneven-inputs", (1,), 60, True,
    ),
    Case(
        "the same with two ranks",
        evidence(
            waiting(0, group(*[("gradients", 41)] * 6, inside=True, name="ddp0", ranks=(0, 1))),
            waiting(
                1,
                group(*[("gradients", 41)] * 5, name="ddp0", ranks=(0, 1)),
                group(BARRIER, inside=True, ranks=(0, 1)),
                line=60,
            ),
        ),
        "hang-uneven-inputs", (1,), 60, True,
    ),
]  # fmt: skip

MISMATCHED = [
    Case(
        "broadcast against all_reduce",
        evidence(ahead(0), inside(1, *FIVE, EXTRA, line=50), ahead(2)),
        "hang-mismatched-collective", (1,), 50, True,
    ),
    Case(
        "rank 0 skips one, of four",
        evidence(
            inside(0, *FIVE, ("all_reduce", 45), call(0, "all_gather", 46), line=46),
            *(inside(r, *FIVE, ("reduce", 43), line=43) for r in (1, 2, 3)),
        ),
        "hang-mismatched-collective", (0,), 45, True,
    ),
    Case(
        "with two ranks both are named",
        evidence(inside(0, *FIVE, ("reduce", 43), line=43), inside(1, *FIVE, EXTRA, line=50)),
        "hang-mismatched-collective", (0, 1), 50, True,
    ),
    Case(
        "two against two",
        evidence(
            ahead(0), ahead(1),
            inside(2, *FIVE, EXTRA, line=50), inside(3, *FIVE, EXTRA, line=50),
        ),
        "hang-mismatched-collective", (0, 1, 2, 3), 41, True,
    ),
    Case(
        "three different calls",
        evidence(ahead(0), inside(1, *FIVE, EXTRA, line=50), inside(2, *FIVE, ("reduce", 55), line=55)),
        "hang-mismatched-collective", (0, 1, 2), 41, True,
    ),
    Case(
        "another size",
        evidence(ahead(0), inside(1, *FIVE, call(0, num_bytes=8192, line=42), line=42), ahead(2)),
        "hang-mismatched-collective", (1,), 42, True,
    ),
    Case(
        "another size: gloo aborts the innocent",
        evidence(
            gone(0, group(*SIX, inside=True), exit_code=-6),
            gone(1, group(*FIVE, call(0, num_bytes=8192, line=42), inside=True), exit_code=1,
                 failure=PREAMBLE),
            gone(2, group(*SIX, inside=True), exit_code=1, failure=ECHO),
        ),
        "hang-mismatched-collective", (1,), 42, True,
    ),
    Case(
        "another type, waited for",
        evidence(ahead(0), inside(1, *FIVE, call(0, dtype="int64", line=42), line=42), ahead(2)),
        "hang-mismatched-collective", (1,), 42, True,
    ),
    Case(
        "another source of a broadcast",
        evidence(*(
            inside(r, *FIVE, call(0, "broadcast", 50, root=int(r == 1)), line=50) for r in range(3)
        )),
        "hang-mismatched-collective", (1,), 50, True,
    ),
    Case(
        "told by the flight recorder alone",
        evidence(*(
            with_flight(
                rank(r, phase="exposed_comm", threads=in_collective(50 + r)),
                *FIVE, EXTRA if r == 1 else LOOP, blocked=True,
            )
            for r in range(3)
        )),
        "hang-mismatched-collective", (1,), 51, True,
    ),
    Case(
        "one more in between: the gradients are issued from C++",
        evidence(*(
            with_flight(
                rank(r, phase="exposed_comm", threads=main((f"{TORCH}/autograd/graph.py", 9, "run"),
                                                           (TRAIN, 30, "train"))),
                *[call(0, "all_reduce", num_bytes=n) for n in ((8, 64, 8, 8) if r == 2 else (8, 64, 8, 64))],
                blocked=True,
            )
            for r in range(3)
        )),
        "hang-mismatched-collective", (2,), 30, True,
    ),
    Case(
        "full state dict under if rank == 0",
        evidence(
            replace(inside(0, *FIVE, ("all_gather", 90), line=90)),
            ahead(1), ahead(2),
            flagged={0: "checkpoint"},
        ),
        "hang-mismatched-collective", (0,), 90, True,
    ),
    Case(
        "two groups in swapped order",
        evidence(
            *(waiting(r, group(("all_reduce", 50), name="A", inside=True), line=50) for r in (0, 2)),
            waiting(1, group(("all_reduce", 51), name="B", inside=True), line=51),
        ),
        "hang-mismatched-collective", (1,), 51, True,
    ),
    Case(
        "swapped between two ranks: both",
        evidence(*(
            waiting(r, group(("all_reduce", 50 + r), name="AB"[r], ranks=(0, 1), inside=True),
                    line=50 + r)
            for r in (0, 1)
        )),
        "hang-mismatched-collective", (0, 1), 50, True,
    ),
    Case(
        "a ring of three groups",
        evidence(*(
            waiting(r, group(("all_reduce", 50 + r), name="ABC"[r], ranks=(r, (r + 1) % 3), inside=True),
                    line=50 + r)
            for r in range(3)
        )),
        "hang-mismatched-collective", (0, 1, 2), 50, True,
    ),
    Case(
        "a ring, and one that waits behind it",
        evidence(
            *(waiting(r, group(("all_reduce", 50 + r), name="AB"[r], ranks=(0, 1), inside=True),
                      line=50 + r) for r in (0, 1)),
            waiting(2, group(("all_reduce", 70), name="C", ranks=(1, 2), inside=True), line=70),
        ),
        "hang-mismatched-collective", (0, 1), 50, True,
    ),
    Case(
        "each receives from the other",
        evidence(*(
            waiting(r, group(call(0, "recv", 80 + r, root=1 - r), name="0/p2p", ranks=(r,),
                             inside=True), line=80 + r)
            for r in (0, 1)
        )),
        "hang-mismatched-collective", (0, 1), 80, True,
    ),
]  # fmt: skip

LOADER = (f"{TORCH}/utils/data/dataloader.py", 1200, "_try_get_data")
MISSING = [
    Case(
        "sleeps in user code",
        among_two(behind(1, threads=main((TRAIN, 88, "slow")), syscall="clock_nanosleep 1")),
        "hang-missing-rank", (1,), 88,
    ),
    Case(
        "loader worker deadlocked",
        among_two(
            behind(1, phase="data", threads=main(LOADER, (TRAIN, 40, "train")),
                   children=(worker(9, ("/home/me/data.py", 12, "__getitem__")), worker(10)))
        ),
        "hang-missing-rank", (1,), 12,
    ),
    Case(
        "loader waits, its workers idle",
        among_two(behind(1, threads=main(LOADER, (TRAIN, 40, "train")), children=(worker(9),))),
        "hang-missing-rank", (1,), 40,
    ),
    Case(
        "a lock never released",
        among_two(behind(1, threads=main((f"{STDLIB}/threading.py", 1, "wait"), (TRAIN, 91, "f")),
                         syscall="futex 202")),
        "hang-missing-rank", (1,), 91,
    ),
    Case(
        "blocked on a pipe",
        among_two(behind(1, threads=main((TRAIN, 92, "f")), syscall="read", wchan="pipe_read")),
        "hang-missing-rank", (1,), 92,
    ),
    Case(
        "computes without end in Python",
        among_two(
            behind(1, state="running", threads=main((TRAIN, 93, "f"), owns_gil=True, active=True)),
            first=[ahead(0), behind(1, state="running", threads=main((TRAIN, 94, "f"), owns_gil=True)),
                   ahead(2)],
        ),
        "hang-missing-rank", (1,), 93,
    ),
    Case("nothing but its progress is known", among_two(behind(1)), "hang-missing-rank", (1,), 41),
    Case(
        "nothing at all is known",
        among_two(RankEvidence(1, 0, "b", 0, "unknown", missing=("node 1: no answer",))),
        "hang-missing-rank", (1,), None,
    ),
    Case(
        "one that never came to the first collective",
        evidence(
            waiting(0, group(LOOP, inside=True)),
            rank(1, threads=main((TRAIN, 5, "main")), step=-1),
            waiting(2, group(LOOP, inside=True)),
        ),
        "hang-missing-rank", (1,), 5,
    ),
    Case(
        "two do not come",
        evidence(ahead(0), *(behind(r, threads=main((TRAIN, 88, "f"))) for r in (1, 2))),
        "hang-missing-rank", (1, 2), 88,
    ),
    Case(
        "behind a chain of groups",
        evidence(
            waiting(0, group(("all_reduce", 50), name="A", ranks=(0, 1), inside=True), line=50),
            waiting(1, group(("all_reduce", 60), name="B", ranks=(1, 2), inside=True), line=60),
            rank(2, threads=main((TRAIN, 88, "f"))),
        ),
        "hang-missing-rank", (2,), 88,
    ),
    Case(
        "no probes: the stacks tell",
        evidence(
            RankEvidence(0, 0, "a", 1, "sleeping", threads=in_collective()),
            RankEvidence(1, 0, "a", 2, "sleeping", threads=main((TRAIN, 88, "f"))),
            RankEvidence(2, 0, "a", 3, "sleeping", threads=in_collective()),
        ),
        "hang-missing-rank", (1,), 88,
    ),
    Case(
        "in the rendezvous, before any group",
        evidence(
            rank(0, threads=in_collective(12, "_store_based_barrier"), step=-1),
            rank(1, threads=main((TRAIN, 4, "download")), step=-1),
        ),
        "hang-missing-rank", (1,), 4,
    ),
    Case(
        "issued without waiting, then asleep: no cycle",
        evidence(
            *(waiting(r, group(("all_reduce", 50), name="B", inside=True), line=50) for r in (0, 2)),
            rank(
                1,
                replace(group(("all_reduce", 49), name="A", inside=True), pending_since_ns=0),
                threads=main((TRAIN, 88, "f")),
            ),
        ),
        "hang-missing-rank", (1,), 88,
    ),
    Case(
        "receives from one that sleeps",
        evidence(
            waiting(0, group(call(0, "recv", 80, root=2), name="0/p2p", ranks=(0,), inside=True)),
            waiting(1, group(call(0, "recv", 80, root=0), name="0/p2p", ranks=(1,), inside=True)),
            rank(2, threads=main((TRAIN, 88, "f"))),
        ),
        "hang-missing-rank", (2,), 88,
    ),
    Case(
        "one is at a checkpoint, another is not and does not come either",
        evidence(
            ahead(0), behind(1, threads=main((TRAIN, 30, "save"))),
            behind(2, threads=main((TRAIN, 88, "f"))),
            flagged={1: "checkpoint"},
        ),
        "hang-missing-rank", (2,), 88,
    ),
    Case(
        "a probe missed a call on rank 2: its numbers are shifted, the flight recorders agree",
        evidence(
            with_flight(inside(0, *FIVE, ("reduce", 43), LOOP), *FIVE, ("reduce", 43), LOOP,
                        blocked=True),
            with_flight(rank(1, group(*FIVE, ("reduce", 43)), threads=main((TRAIN, 88, "f"))),
                        *FIVE, ("reduce", 43), blocked=False),
            with_flight(inside(2, *FIVE, LOOP), *FIVE, ("reduce", 43), LOOP, blocked=True),
        ),
        "hang-missing-rank", (1,), 88,
    ),
    Case(
        "DDP's wait seen only by the flight recorder: NCCL waits on the device",
        evidence(
            *(
                with_flight(
                    rank(r, threads=main(Frame("libcuda.so", 0, "cuStreamSynchronize", native=True),
                                         (TRAIN, 41, "train"))),
                    *SIX, blocked=True,
                )
                for r in (0, 2)
            ),
            with_flight(rank(1, threads=main((TRAIN, 88, "f"))), *FIVE, blocked=False),
        ),
        "hang-missing-rank", (1,), 88,
    ),
]  # fmt: skip

NATIVE = Frame("hold.c", 10, "spin", native=True)
STUCK = [
    Case("SIGSTOP before the collective", among_two(behind(1, state="stopped")),
         "hang-stopped-rank", (1,), 41),
    Case(
        "SIGSTOP inside it",
        among_two(waiting(1, group(*SIX, inside=True), state="stopped")),
        "hang-stopped-rank", (1,), 41,
    ),
    Case(
        "SIGSTOP at a checkpoint is no pause",
        among_two(behind(1, state="stopped", threads=main((TRAIN, 30, "save"))),
                  flagged={1: "checkpoint"}),
        "hang-stopped-rank", (1,), 30,
    ),
    Case(
        "holds the GIL, asleep",
        among_two(behind(1, threads=main((TRAIN, 95, "f"), owns_gil=True))),
        "hang-native-stuck", (1,), 95,
    ),
    Case(
        "holds the GIL, spinning: native frames tell",
        among_two(behind(1, state="running", threads=main(NATIVE, (TRAIN, 95, "f"), owns_gil=True))),
        "hang-native-stuck", (1,), 95,
    ),
    Case(
        "holds the GIL, spinning: its side thread is silent, the others' are not",
        evidence(
            *(with_flight(ahead(r), *SIX, blocked=True) for r in (0, 2)),
            behind(1, state="running", threads=main((TRAIN, 95, "f"), owns_gil=True)),
        ),
        "hang-native-stuck", (1,), 95,
    ),
    Case(
        "another thread holds the GIL",
        among_two(behind(1, threads=(
            *main((TRAIN, 41, "train")),
            *[replace(t, name="Thread-1", main=False) for t in main((TRAIN, 96, "poll"), owns_gil=True)],
        ))),
        "hang-native-stuck", (1,), 96,
    ),
    Case(
        "does not return from the kernel",
        among_two(behind(1, state="disk-sleep", wchan="nfs_wait", threads=main((TRAIN, 97, "f")))),
        "hang-native-stuck", (1,), 97,
    ),
    Case(
        "its GPU does not finish",
        among_two(behind(1, threads=main((f"{TORCH}/cuda/__init__.py", 9, "synchronize"),
                                         (TRAIN, 98, "f")))),
        "hang-native-stuck", (1,), 98,
    ),
    Case(
        "a link is cut",
        evidence(*(replace(ahead(r), host="ab"[r // 2], node=r // 2) for r in range(4))),
        "hang-network", (), 41,
    ),
    Case(
        "a link is cut; what was issued before and not waited for makes no ring",
        evidence(
            waiting(0, group(("all_reduce", 50), name="C", ranks=(0, 1), inside=True), line=50),
            waiting(
                1,
                replace(group(("all_reduce", 49), name="A", ranks=(0, 1), inside=True),
                        pending_since_ns=0),
                group(LOOP, name="B", ranks=(1, 2), inside=True),
            ),
            waiting(2, group(LOOP, name="B", ranks=(1, 2), inside=True)),
        ),
        "hang-network", (), 41,
    ),
    Case(
        "a link is cut, some got through and wait in the next",
        evidence(
            *(waiting(r, group(*SIX, LOOP, inside=True), host="a") for r in (0, 1)),
            waiting(2, group(*SIX, inside=True), host="b"),
        ),
        "hang-network", (), 41,
    ),
]  # fmt: skip

FOREIGN = {"site": "/home/me/other.py:3"}
NO_HANG = [
    Case("checkpoint on rank 0", evidence(
        behind(0, threads=main((TRAIN, 30, "save"))), ahead(1), ahead(2), flagged={0: "checkpoint"}),
        None, (0,), 30, pause="checkpoint"),
    Case("checkpoint on rank 0, in uninterruptible writes", evidence(
        behind(0, state="disk-sleep", threads=main((TRAIN, 30, "save"))), ahead(1),
        flagged={0: "checkpoint"}),
        None, (0,), 30, pause="checkpoint"),
    Case("evaluation on one rank", among_two(
        behind(1, state="running", threads=main((TRAIN, 31, "evaluate"))), flagged={1: "evaluation"}),
        None, (1,), 31, pause="evaluation"),
    Case("compilation on one rank", among_two(
        behind(1, state="running", threads=main(NATIVE, (TRAIN, 32, "f"), owns_gil=True)),
        flagged={1: "compile"}),
        None, (1,), 32, pause="compile"),
    Case("compilation on all, the first in the collective", evidence(
        ahead(0, ), behind(1, threads=main((TRAIN, 32, "f"))), flagged={0: "compile", 1: "compile"}),
        None, (1,), 32, pause="compile"),
    Case("a slow first batch", evidence(
        waiting(0, group(LOOP, inside=True)), rank(1, threads=main(LOADER, (TRAIN, 40, "train"))),
        flagged={0: "first-batch", 1: "first-batch"}),
        None, (1,), 40, pause="first-batch"),
    Case("lazy imports at the start", evidence(
        rank(0, threads=in_collective(12, "_store_based_barrier")),
        rank(1, threads=main((f"{STDLIB}/importlib/__init__.py", 1, "f"), (TRAIN, 2, "<module>"))),
        flagged={1: "startup"}),
        None, (1,), 2, pause="startup"),
    Case("the communicators are being made", evidence(
        *(waiting(r, group(LOOP, inside=True)) for r in range(3)),
        flagged={0: "first-batch", 1: "first-batch", 2: "first-batch"}),
        None, (0, 1, 2), 41, pause="first-batch"),
    Case("the late rank came between the readings", evidence(
        ahead(0), ahead(1), ahead(2), first=[ahead(0), behind(1), ahead(2)]),
        None, (), 41),
    Case("the late rank made a step between the readings", evidence(
        ahead(0), replace(behind(1), step=6), first=[ahead(0), behind(1)]),
        None, (), 41),
    Case("all are busy, nobody waits", evidence(
        *(rank(r, group(*FIVE), threads=main((TRAIN, 88, "f"))) for r in range(3))),
        None, (), None),
    Case("one is done, the other still works alone", evidence(
        gone(0, group(*FIVE), exit_code=0, ended="script"),
        rank(1, group(*FIVE), threads=main((TRAIN, 88, "export")))),
        None, (), None),
    Case("a single rank", evidence(rank(0, threads=main((TRAIN, 88, "f")))), None, (), None),
    Case("no reading at all", evidence(readings=0), None, (), None),
    Case("a reading of nobody", evidence(world_size=2), None, (), None),
    *(
        Case(f"other sizes in {op}", evidence(
            *(inside(r, *FIVE, call(0, op, num_bytes=64 * (r + 1))) for r in range(3)),
            flagged=dict.fromkeys(range(3), "evaluation")),
            None, (0, 1, 2), 41, pause="evaluation")
        for op in ("all_to_all", "alltoall_base", "gather", "scatter", "nccl:all_to_all")
    ),
    Case("other lines of one broadcast", evidence(
        *(inside(r, *FIVE, call(0, "broadcast", 50 + r, root=0)) for r in range(3)),
        flagged=dict.fromkeys(range(3), "startup")),
        None, (0, 1, 2), 41, pause="startup"),
    Case("a size that one rank does not know", evidence(
        ahead(0), inside(1, *FIVE, call(0, num_bytes=0, dtype="")), ahead(2),
        flagged=dict.fromkeys(range(3), "startup")),
        None, (0, 1, 2), 41, pause="startup"),
]  # fmt: skip

ALL = [*DEAD, *UNEVEN, *MISMATCHED, *MISSING, *STUCK, *NO_HANG]
