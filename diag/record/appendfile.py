"""A file that only grows, whose failed writes are kept and tried again.

A message missing in the middle would spoil all that follows (a later delta dictionary
refers to it), so nothing accepted is ever dropped. While the disk refuses, the bytes wait in
memory; past a limit the file is `full` and its owner must append nothing more.
"""

from __future__ import annotations

import os
from pathlib import Path

# Memory of the host process we may hold while the disk refuses.
_MAX_WAITING = 8 * 2**20


class AppendFile:
    """Appends bytes straight to the operating system: a SIGKILL loses none of them."""

    def __init__(self, path: Path) -> None:
        """Create `path` (mode 0600).

        Raises:
            OSError: it exists, or cannot be created.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.path = path
        self.size = 0  # bytes the system has taken
        self._waiting = b""
        self._descriptor = os.open(path, flags, 0o600)

    @property
    def waits(self) -> bool:
        """Something accepted is not on disk yet."""
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) > _MAX_WAITING

    def append(self, data: bytes) -> None:
        """Take `data`, and write all that waits.

        Raises:
            OSError: the system refused; what was taken waits for the next call.
        """
        self._waiting += data
        self.push()

    def push(self) -> None:
        """Write what waits. Raises OSError as `append` does."""
        while self._waiting:
            written = os.write(self._descriptor, self._waiting)
            self._waiting = self._waiting[written:]
            self.size += written

    def clear(self) -> None:
        """Forget the contents. Raises OSError; nothing is changed then."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0
        self._waiting = b""

    def check(self) -> None:
        """Raise FileNotFoundError if the file was deleted: writes would go nowhere, silently."""
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(f"{self.path} was deleted while it was recorded")

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
