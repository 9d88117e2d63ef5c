"""How a rank ended, in its own words, and which of several failing ranks was the first.

Each rank writes `outcome.json` beside its logs, probes or not; a killed rank leaves none.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diag.record.atomic import read_json_object, write_json_atomic

OUTCOME_JSON = "outcome.json"
_LIFE = re.compile(r"\d{5,}-(\d+)")  # <rank>-<restart>, as in logs.rank_log_dir
Ended = Literal["script", "exception", "max-steps", "not-distributed"]

# What a rank says when the peer it talked to is gone: the trace of another's failure.
_ECHO = re.compile(
    r"connection (was )?(likely )?(closed|reset)|(closed|reset) by (remote )?peer|broken pipe"
    r"|connection refused|remote process exited|ncclRemoteError|communicator was aborted"
    r"|socket (was )?closed|failed to recv, got 0 bytes",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """A rank's last word.

    Attributes:
        time_ns: wall clock, so that ranks of several nodes can be put in order.
        error: {type, message, file, line, function} of what ended the script, or None.
        traceback: as printed, diag's own frames removed; "" without an exception.
    """

    rank: int
    restart: int
    ended: Ended
    exit_code: int
    time_ns: int
    error: dict[str, Any] | None = None
    traceback: str = ""

    def write(self, directory: Path) -> None:
        """Leave it in `directory`. Raises OSError."""
        write_json_atomic(directory / OUTCOME_JSON, asdict(self))


def last_attempt(logs: Path) -> int:
    """The highest restart number below `logs`; 0 when nothing was ever restarted."""
    names = (_LIFE.fullmatch(path.name) for path in logs.glob("*-*"))
    return max((int(name[1]) for name in names if name), default=0)


def read_outcomes(logs: Path) -> tuple[Outcome, ...]:
    """The outcomes of the last attempt, by rank; a torn one is left out like a missing one."""
    outcomes = []
    for path in sorted(logs.glob(f"[0-9]*-{last_attempt(logs)}/{OUTCOME_JSON}")):
        try:
            outcomes.append(Outcome(**read_json_object(path)))
        except (OSError, ValueError, TypeError):
            continue
    return tuple(outcomes)


@dataclass(frozen=True)
class RankFailure:
    """A rank that did not end well. exit_code is negative for a signal, as subprocess has it."""

    rank: int
    exit_code: int
    time_ns: int
    outcome: Outcome | None = None

    @property
    def shell_code(self) -> int:
        """What a shell would report: the script's own code, or 128 + signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    @property
    def signal_name(self) -> str | None:
        if self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"

    @property
    def is_echo(self) -> bool:
        """Its error only says that a peer was gone."""
        error = self.outcome.error if self.outcome else None
        return error is not None and bool(_ECHO.search(str(error.get("message", ""))))


def first_failure(failures: Iterable[RankFailure]) -> RankFailure | None:
    """The rank that failed by itself, as opposed to those which failed or were ended because of it.

    In order: an exception or exit code of its own (the earliest), a signal from elsewhere, an
    error that merely echoes a lost peer, and last the ranks that elastic ended with SIGTERM.
    """
    return min(failures, key=_guilt, default=None)


def _guilt(failure: RankFailure) -> tuple[int, int, int]:
    if failure.exit_code == -signal.SIGTERM:
        order = 3
    elif failure.is_echo:
        order = 2
    else:
        order = 1 if failure.exit_code < 0 else 0
    return order, failure.time_ns, failure.rank
