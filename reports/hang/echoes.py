"""Errors that only tell of another rank's: the peer was gone, or did not come in time."""

from __future__ import annotations

import re

from diag.record.evidence import Failure

_ECHO = re.compile(
    r"connection (was )?(likely )?(closed|reset)|(closed|reset) by (remote )?peer|broken pipe"
    r"|connection refused|remote process exited|ncclRemoteError|communicator was aborted"
    r"|socket (was )?closed|failed to recv, got 0 bytes"
    r"|timed out waiting|wait timeout|collective operation timeout|store .*timed? ?out",
    re.IGNORECASE,
)
_IN_COLLECTIVE = re.compile(r"gloo|nccl|process ?group|collective|preamble|c10d", re.IGNORECASE)
_COLLECTIVE_TYPES = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")


def is_echo(failure: Failure) -> bool:
    return bool(_ECHO.search(failure.message))


def is_from_collective(failure: Failure) -> bool:
    """Raised by the backend, which tells of a disagreement but not of its side."""
    raised = failure.type.rpartition(".")[2] in _COLLECTIVE_TYPES
    return raised and bool(_IN_COLLECTIVE.search(failure.message))
