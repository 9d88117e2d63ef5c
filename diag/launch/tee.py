"""Ranks write to files; this shows some of those files on the terminal while they grow.

Elastic's own tail turns every carriage return into a new line, which floods the terminal with
progress bars, and puts a prefix before a lone rank's output; hence this one, which copies bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_INTERVAL_S = 0.05
_CHUNK = 1 << 16


@dataclass
class _Followed:
    path: Path
    out: BinaryIO
    prefix: bytes = b""
    source: BinaryIO | None = None
    pending: bytes = b""  # a line's beginning, held back until it ends; only with a prefix


@dataclass
class Tee:
    """Copies growing files to streams from one thread, between start and stop."""

    _files: list[_Followed] = field(default_factory=list)
    _broken: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def follow(self, path: Path, out: BinaryIO, prefix: str = "") -> None:
        """Copy what `path` holds and will hold to `out`; with a prefix, whole lines only."""
        with self._lock:
            self._files.append(_Followed(path, out, prefix.encode()))

    def __enter__(self) -> Tee:
        self._thread = threading.Thread(target=self._run, name="diag-tee", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Show what is left, then stop."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._copy_all(last=True)
        for file in self._files:
            if file.source is not None:
                file.source.close()

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            self._copy_all(last=False)

    def _copy_all(self, last: bool) -> None:
        with self._lock:
            files = list(self._files)
        for file in files:
            for chunk in _new_bytes(file):
                self._show(file.out, ready(file, chunk))
            if last and file.pending:
                self._show(file.out, file.prefix + file.pending + b"\n")
                file.pending = b""

    def _show(self, out: BinaryIO, data: bytes) -> None:
        if not data or id(out) in self._broken:
            return
        try:
            out.write(data)
            out.flush()
        except (OSError, ValueError):  # `diag run … | head`: the training goes on, unseen
            self._broken.add(id(out))


def _new_bytes(file: _Followed) -> Iterable[bytes]:
    if file.source is None:
        try:
            file.source = open(file.path, "rb")  # noqa: SIM115 - closed by Tee.__exit__
        except FileNotFoundError:
            return
    while chunk := file.source.read(_CHUNK):
        yield chunk


def ready(file: _Followed, chunk: bytes) -> bytes:
    """What may be shown now: all of it without a prefix, else every complete line with it."""
    if not file.prefix:
        return chunk
    *lines, file.pending = (file.pending + chunk).split(b"\n")
    return b"".join(file.prefix + line + b"\n" for line in lines)
