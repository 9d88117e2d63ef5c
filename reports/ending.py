"""How a run ended, in a sentence, where it did not end well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diag.record.reader import RankRecord, Run


def ending(run: Run) -> Iterator[str]:
    """Nothing for a run that ended well, or still runs."""
    ended_by, code = run.facts.get("ended_by"), run.facts.get("exit_code")
    if ended_by == "signal":
        yield f"the run was interrupted (exit code {code}): this is what was recorded until then"
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
