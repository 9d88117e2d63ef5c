"""The heartbeat: one 4 KiB memory-mapped file per rank that says where the rank is now.

It survives any death of the rank, costs the rank no system call, and a watcher reads it
without stopping anybody. Little-endian, fixed offsets, version 1::

    0    8s   magic "DIAGBEAT"
    8    u32  layout version
    12   u32  unused
    16   u64  pid
    24   36s  the kernel's boot id, zeros if unknown: whose CLOCK_MONOTONIC this is
    64   u64  beat number                                      ┐ rewritten by every beat
    72   i64  monotonic_ns of this beat                        │
    80   i64  step: optimizer steps completed                  │
    88   i64  phase: diag.record.schema.Phase, or -1           │
    96   i64  collectives entered                              │
    104  i64  collectives completed                            │
    112  i64  monotonic_ns since when one is pending, 0: none  │
    120  u64  beat number again                                ┘
    128…4095  reserved, zero

A beat writes the block front to back in one call, so the number at its end lags while a write
is under way. A reader takes the number at the end first and at the front last: equal means
that nothing was written between.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from diag.errors import RecordError

VERSION = 1
SIZE = 4096
_MAGIC = b"DIAGBEAT"
_HEADER = struct.Struct("<8sIIQ36s")
_BEAT = struct.Struct("<QqqqqqqQ")
_NUMBER = struct.Struct("<Q")
_BEAT_AT = 64
_END_AT = _BEAT_AT + _BEAT.size - _NUMBER.size
_RETRIES = 64


@dataclass(frozen=True)
class Heartbeat:
    """What a rank last said; times in ns of its own node's CLOCK_MONOTONIC.

    `consistent` is False where no whole beat could be read (the rank died while writing one):
    the fields may then mix two beats.
    """

    pid: int
    boot_id: str
    number: int
    monotonic_ns: int
    step: int
    phase: int
    entered: int
    completed: int
    pending_since_ns: int
    consistent: bool = True


class HeartbeatWriter:
    """Owns one heartbeat file. In a forked child its beats go nowhere."""

    def __init__(self, path: Path) -> None:
        """Create or take over `path` (mode 0600).

        Raises:
            OSError: it cannot be created or mapped.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, SIZE)
            self._page: mmap.mmap | bytearray = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)
        self._number = 0
        _HEADER.pack_into(self._page, 0, _MAGIC, VERSION, 0, os.getpid(), boot_id().encode())
        self.beat(0, -1, 0, 0, 0)
        _living.add(self)

    def beat(
        self, step: int, phase: int, entered: int, completed: int, pending_since_ns: int
    ) -> None:
        """Say where this rank is; under a microsecond. One thread at a time."""
        self._number = number = self._number + 1
        _BEAT.pack_into(
            self._page, _BEAT_AT,
            number, time.monotonic_ns(), step, phase, entered, completed, pending_since_ns, number,
        )  # fmt: skip

    def _disarm(self) -> None:
        self._page = bytearray(SIZE)


def read_heartbeat(path: Path) -> Heartbeat:
    """The newest beat in `path`; safe while the rank runs.

    Raises:
        OSError: the file cannot be read.
        RecordError: it is no heartbeat, or one of a newer layout.
    """
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size < SIZE:
            raise RecordError("bad-heartbeat", f"{path} is shorter than {SIZE} bytes")
        with mmap.mmap(stream.fileno(), SIZE, access=mmap.ACCESS_READ) as page:
            return _read(path, page)


def _read(path: Path, page: mmap.mmap) -> Heartbeat:
    magic, version, _, pid, boot = _HEADER.unpack_from(page, 0)
    if magic != _MAGIC:
        raise RecordError("bad-heartbeat", f"{path} is not a heartbeat")
    if version > VERSION:
        raise RecordError(
            "newer-heartbeat", f"{path} has layout {version}; this diag reads up to {VERSION}"
        )
    consistent, beat = _snapshot(page)
    boot_text = boot.rstrip(b"\0").decode("ascii", "replace")
    number, now, step, phase, entered, completed, pending = beat
    return Heartbeat(
        pid, boot_text, number, now, step, phase, entered, completed, pending, consistent
    )


def _snapshot(page: mmap.mmap) -> tuple[bool, tuple[int, ...]]:
    for _ in range(_RETRIES):
        (end,) = _NUMBER.unpack_from(page, _END_AT)
        beat = _BEAT.unpack_from(page, _BEAT_AT)[:-1]
        (front,) = _NUMBER.unpack_from(page, _BEAT_AT)
        if front == end == beat[0]:
            return True, beat
        time.sleep(1e-5)
    return False, beat


def boot_id() -> str:
    """The kernel's id of this boot; "" where there is none. Monotonic clocks compare within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()[:36]
    except OSError:
        return ""


_living: weakref.WeakSet[HeartbeatWriter] = weakref.WeakSet()


def _disarm_all() -> None:
    for writer in list(_living):
        writer._disarm()


os.register_at_fork(after_in_child=_disarm_all)
