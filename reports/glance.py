"""What a run directory tells without its streams being read: enough to list and to choose runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diag.errors import RecordError
from diag.record.atomic import read_json_object
from diag.record.heartbeat import read_heartbeat
from diag.record.liveness import is_running
from diag.record.store import HEARTBEAT, RANK_JSON, RunDir


def world_size(run: RunDir) -> int:
    """As launched; 0 where unknown."""
    size = run.facts().get("world_size")
    return size if isinstance(size, int) else 0


def ended(run: RunDir, facts: Mapping[str, Any]) -> str:
    """run.json's `ended_by`, "running", or "killed" where nothing says how it ended."""
    ended_by = facts.get("ended_by")
    if isinstance(ended_by, str):
        return ended_by
    return "running" if is_running(facts, run.rank_directories()) else "killed"


def first_rank_facts(run: RunDir) -> dict[str, Any]:
    """rank.json of the lowest rank's last life, or {}."""
    directories = sorted(run.rank_directories(), key=lambda path: _rank_and_life(path.name))
    for directory in directories:
        try:
            return read_json_object(directory / RANK_JSON)
        except (OSError, ValueError):
            continue
    return {}


def _rank_and_life(name: str) -> tuple[int, int]:
    rank, _, life = name.partition("-")
    return (int(rank), -int(life)) if rank.isdigit() and life.isdigit() else (10**9, 0)


def num_steps(run: RunDir) -> int | None:
    """Of the first rank, from rank.json or, while it goes on or where it was killed, its heartbeat."""
    facts = first_rank_facts(run)
    steps = facts.get("steps")
    stated = steps if isinstance(steps, int) and not isinstance(steps, bool) else None
    if facts.get("ended") is not None and stated is not None:
        return stated
    return _beaten_steps(run) or stated


def _beaten_steps(run: RunDir) -> int | None:
    for directory in run.rank_directories():
        try:
            return read_heartbeat(directory / HEARTBEAT).step
        except (OSError, RecordError):
            continue
    return None


def has_steps(run: RunDir) -> bool:
    """Whether there is a step to explain; where no rank says, whether any left a record."""
    steps = num_steps(run)
    return bool(run.rank_directories()) if steps is None else steps > 0
