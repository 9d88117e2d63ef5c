"""The one exception root. `main` catches it once, prints it, and exits with its code.

An error tells what happened, the evidence with its numbers, and what to do next.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command. A failing script keeps its own; a rank killed by signal n gives 128+n."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    DIAG_FAILED = 3
    HUNG = 124
    INTERRUPTED = 130
    TERMINATED = 143


class DiagError(Exception):
    """Something a user can read and act upon.

    Args:
        slug: stable short name, e.g. ``no-such-run``; greppable, never reworded.
        what: one sentence: what happened, with the numbers.
        hint: the next step, if possible a command; may be empty.
        exit_code: what the process exits with.
    """

    def __init__(
        self, slug: str, what: str, hint: str = "", exit_code: int = ExitCode.DIAG_FAILED
    ) -> None:
        super().__init__(what)
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it where no command prints it
        self.slug = slug
        self.what = what
        self.hint = hint
        self.exit_code = int(exit_code)


class UsageError(DiagError):
    """The command was called with something it cannot use."""

    def __init__(self, slug: str, what: str, hint: str = "") -> None:
        super().__init__(slug, what, hint, ExitCode.USAGE)


class RecordError(DiagError):
    """A run directory cannot be read as one."""
