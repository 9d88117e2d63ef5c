"""A file that only grows, whose failed writes are kept and tried again.

What a message lost in the middle would do: every later delta dictionary would be off. So
nothing accepted is ever dropped; while the disk refuses, the file is `full` and takes no more.
"""

from __future__ import annotations

import os
from pathlib import Path

# Host memory we may hold while the disk refuses.
_MAX_PENDING = 8 * 2**20


class AppendFile:
    """Appends bytes straight to the operating system: nothing is lost by a SIGKILL."""

    def __init__(self, path: Path) -> None:
        """Create `path` (mode 0600).

        Raises:
            OSError: it exists, or cannot be created.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.path = path
        self.size = 0
        self._pending = b""
        self._descriptor = os.open(path, flags, 0o600)

    @property
    def full(self) -> bool:
        """Too much waits for the disk: append nothing until `push` succeeds."""
        return len(self._pending) > _MAX_PENDING

    def append(self, data: bytes) -> None:
        """Take `data` and try to write all that waits.

        Raises:
            OSError: the system refused; what was taken stays and is tried by the next call.
        """
        self._pending += data
        self.push()

    def push(self) -> None:
        """Write what waits. Raises OSError as `append` does."""
        while self._pending:
            written = os.write(self._descriptor, self._pending)
            self._pending = self._pending[written:]
            self.size += written

    def check(self) -> None:
        """Raise FileNotFoundError if the file was deleted: writes would go nowhere, silently."""
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(f"{self.path} was deleted while it was recorded")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
