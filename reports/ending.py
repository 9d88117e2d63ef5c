"""How a run ended: in a word or two for lists, in a sentence where it did not end well."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diag.record.reader import RankRecord, Run

_WELL_ENDED = ("script", "max-steps")
# What the launcher is told to stop by; any other signal came from elsewhere and hit a rank.
_TOLD = tuple(128 + s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_WORDS = {
    "script": "finished",
    "max-steps": "stopped at --max-steps",
    "signal": "interrupted",
    "diag": "ended by diag",
    "hang": "hung",
}
_CLAUSES = {
    "running": "is still running",
    "killed": "was killed",
    "interrupted": "was interrupted",
    "ended by diag": "was ended by diag",
}


def is_well(facts: Mapping[str, Any]) -> bool:
    """Whether the run of these facts (run.json) ended, and well."""
    return facts.get("ended_by") in _WELL_ENDED and not facts.get("exit_code")


def in_a_word(how: str, exit_code: object) -> str:
    """What `glance.ended` gives, for people: "finished", "failed (exit 1)", "interrupted" …"""
    if exit_code and how == "signal" and exit_code not in _TOLD:
        return f"failed ({signal_name(exit_code)})"
    if exit_code and how in _WELL_ENDED:
        return f"failed (exit {exit_code})"
    return _WORDS.get(how, how)


def as_clause(word: str) -> str:
    """What `in_a_word` gives, to follow a run's name: "was interrupted"."""
    return _CLAUSES.get(word, word)


def signal_name(exit_code: object) -> str:
    """ "SIGKILL" for 137; "exit 7" where the code names no signal."""
    try:
        return signal.Signals(exit_code - 128).name if isinstance(exit_code, int) else "a signal"
    except ValueError:
        return f"exit {exit_code}"


def ending(run: Run) -> Iterator[str]:
    """Nothing for a run that ended well, or still runs."""
    ended_by, code = run.facts.get("ended_by"), run.facts.get("exit_code")
    if ended_by == "signal" and code in _TOLD:
        yield f"the run was interrupted (exit code {code}): this is what was recorded until then"
    elif ended_by == "signal":
        yield f"the run failed: a rank was killed by {signal_name(code)} (exit code {code})"
    elif ended_by == "diag":
        yield f"diag itself ended the run (exit code {code}); `diag run` said why"
    elif isinstance(code, int) and code != 0:
        yield f"the run failed with exit code {code}{_first_error(run)}"


def _first_error(run: Run) -> str:
    """The earliest error among the ranks; the others' may be its echoes."""
    failed = [r for r in run.ranks.values() if isinstance(r.facts.get("error"), Mapping)]
    first = min(failed, key=_end_ns, default=None)
    if first is None:
        return ""
    error: Mapping[str, Any] = first.facts["error"]
    message = str(error.get("message") or "").splitlines()
    text = f": rank {first.rank}, {error.get('type')}: {message[0] if message else ''}"
    return f"{text} ({error['file']}:{error.get('line')})" if error.get("file") else text


def _end_ns(record: RankRecord) -> float:
    end = record.facts.get("end_ns")
    return float(end) if isinstance(end, (int, float)) else float("inf")
