"""What a rank does while others wait for it: from its state, its stacks and the kernel's word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from diag.record.evidence import ChildProcess, Frame, RankEvidence, Thread
from diag.reports.hang.model import Place
from diag.reports.hang.stacks import is_users, main_thread, most_common, place_of, user_place
from diag.reports.hang.words import at

Kind = Literal[
    "stopped", "native", "kernel", "device", "loader", "sleep", "lock", "read", "network", "child",
    "compute", "unknown",
]  # fmt: skip

# Function names of C code (py-spy --native), the kernel's wait channels, and system calls.
_SIGNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("sleep", re.compile(r"nanosleep|^(time_)?sleep$")),
    ("child", re.compile(r"^(do_)?wait(4|id|pid)?$|waitpid|^kernel_wait4")),
    ("network", re.compile(r"^(sk_wait|inet_|tcp_|recv|connect|accept|wait_woken|unix_)")),
    ("read", re.compile(r"pipe_|^read$|^pread|readv|filemap|folio_wait|^flock|_lock_file|tty")),
    ("network", re.compile(r"poll|epoll|select")),
    ("lock", re.compile(r"futex|sem_wait|semtimedop|^acquire")),
)
_LOADER_FILE = re.compile(r"/torch/utils/data/|/diag/engine/data/")
_LOADER_WAITS = ("_next_data", "_get_data", "_try_get_data", "_next_index")
_LOADER_WORKER = re.compile(r"/torch/utils/data/_utils/worker\.py$")
_LOCKING = re.compile(r"/threading\.py$|/multiprocessing/(synchronize|queues)\.py$|/queue\.py$")
_READING = re.compile(r"/(subprocess|socket|ssl|selectors)\.py$|/multiprocessing/connection\.py$")
_DEVICE = re.compile(r"^cu(da)?(Stream|Device|Event|Ctx)?Synchronize$|^synchronize$")
_INTERPRETER = re.compile(
    r"_PyEval|^Py_?[A-Z]|^_?Py[A-Z]\w*_|^method_vectorcall|^cfunction_|^pymain"
)


@dataclass(frozen=True)
class Activity:
    """What, in words that follow "rank 3 ": "sleeps", "computes".

    Attributes:
        place: the line to look at: the rank's own, or its loader worker's.
        caller: the rank's own line, where `place` is another process's.
    """

    kind: Kind
    words: str
    place: Place | None
    caller: Place | None = None

    @property
    def sentence(self) -> str:
        """ "sleeps at train.py:88 in main"."""
        lead, colon, rest = self.words.partition(": ")
        return f"{lead}{at(self.caller or self.place)}{colon}{rest}"


def activity(
    now: RankEvidence, before: RankEvidence, answered: bool, others_answered: bool
) -> Activity:
    """What the rank does.

    Args:
        now, before: the last reading, completed, and the first.
        answered: its own side thread told what its flight recorder holds.
        others_answered: some other rank's did, so that silence says something.
    """
    place = place_of(now)
    if now.state == "stopped":
        return Activity("stopped", "is stopped (SIGSTOP, or a debugger)", place)
    if now.state == "disk-sleep" and before.state == "disk-sleep":
        where = f" ({now.wchan})" if now.wchan else ""
        return Activity("kernel", f"does not return from the kernel{where}", place)
    holder = _native_holder(now, before, answered, others_answered)
    if holder is not None:
        how = "spins" if now.state == "running" else "sleeps"
        words = f"{how} in native code that holds the interpreter's lock (GIL)"
        return Activity("native", words, user_place(holder) or place)
    return _by_thread(now, place)


def _native_holder(
    now: RankEvidence, before: RankEvidence, answered: bool, others_answered: bool
) -> Thread | None:
    """The thread that keeps the GIL inside native code; Python that merely computes lets go of it."""
    holder = _gil_holder(now)
    if holder is None or answered:
        return None
    # Python itself never sleeps with the lock.
    asleep = now.state in ("sleeping", "disk-sleep")
    in_native = (
        bool(holder.frames) and holder.frames[0].native and not _interprets(holder.frames[0])
    )
    earlier = _gil_holder(before)
    same_line = earlier is not None and earlier.frames[:1] == holder.frames[:1]
    return holder if asleep or in_native or (others_answered and same_line) else None


def _gil_holder(rank: RankEvidence) -> Thread | None:
    return next((thread for thread in rank.threads if thread.owns_gil), None)


def _interprets(frame: Frame) -> bool:
    return bool(_INTERPRETER.search(frame.function))


def _by_thread(now: RankEvidence, place: Place | None) -> Activity:
    thread = main_thread(now)
    frames = thread.frames if thread is not None else ()
    below = tuple(_below_user(frames))
    if any(_LOADER_FILE.search(f.file) and f.function in _LOADER_WAITS for f in frames):
        stuck = [found for child in now.children if (found := worker_place(child)) is not None]
        words = f"waits for its loader{_workers(now.children)}"
        return Activity("loader", words, most_common(stuck) or place, place)
    if any(_DEVICE.search(frame.function) for frame in below):
        return Activity("device", "waits for its GPU, which does not finish", place)
    kind = _kind(now, below)
    return Activity(kind, _WORDS[kind], place)


def _below_user(frames: Iterable[Frame]) -> Iterable[Frame]:
    """The frames that the user's innermost line called."""
    for frame in frames:
        if is_users(frame):
            return
        yield frame


def _kind(now: RankEvidence, below: tuple[Frame, ...]) -> Kind:
    if now.state == "running":
        return "compute"
    # The kernel's word first: a frame of Python's may be far above what it ended up in.
    for word in (now.syscall.split(" ")[0], now.wchan, *(f.function for f in below if f.native)):
        kind = next((kind for kind, sign in _SIGNS if word and sign.search(word)), None)
        if kind == "lock" and any(_READING.search(f.file) for f in below):
            return "network"
        if kind is not None:
            return kind
    if any(_LOCKING.search(frame.file) for frame in below):
        return "lock"
    if any(_READING.search(frame.file) for frame in below):
        return "read"
    return "unknown"


_WORDS: dict[Kind, str] = {
    "sleep": "sleeps",
    "lock": "waits for a lock or another thread",
    "read": "reads from a file or pipe that gives nothing",
    "network": "waits for a socket or pipe",
    "child": "waits for a child process to end",
    "compute": "computes",
    "unknown": "is",
}


def _workers(children: Iterable[ChildProcess]) -> str:
    """ ": worker 4711 waits for a lock at data.py:12"; "" without any."""
    told = [text for child in sorted(children, key=lambda c: c.pid) if (text := _worker(child))]
    return f": {'; '.join(told[:2])}" if told else ""


def _worker(child: ChildProcess) -> str:
    if child.state in ("zombie", "gone", "stopped"):
        return f"worker {child.pid} is {'stopped' if child.state == 'stopped' else 'dead'}"
    place = worker_place(child)
    return f"worker {child.pid} is{at(place)}" if place is not None else ""


def worker_place(child: ChildProcess) -> Place | None:
    """The user's line a loader worker is at; None where it merely waits for work."""
    threads = [t for t in child.threads if t.main or t.name == "MainThread"] or child.threads[:1]
    own = [f for thread in threads for f in thread.frames]
    in_worker = [i for i, f in enumerate(own) if _LOADER_WORKER.search(f.file)]
    # Above the worker's loop are the frames of whoever started the process: the rank's own.
    mine = own[: in_worker[0]] if in_worker else own
    users = [f for f in mine if is_users(f)]
    return Place(users[0].file, users[0].line, users[0].function) if users else None
