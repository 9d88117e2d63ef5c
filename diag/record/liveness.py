"""Is a recorded run still going on? Judged from what it wrote, on this machine or another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from diag.errors import RecordError
from diag.record.heartbeat import Heartbeat, boot_id, read_heartbeat
from diag.record.store import HEARTBEAT

_FRESH_NS = 10 * 10**9
# Two clocks: a process's start is known to the second only, and the wall clock may be set.
_START_SLACK_S = 5.0


def is_running(facts: Mapping[str, Any], rank_directories: Iterable[Path]) -> bool:
    """Whether the run seems not to have ended: a rank of this boot beats, or its launcher lives."""
    if facts.get("ended_by") is not None:
        return False
    beats = [b for d in rank_directories if (b := _beat(d)) is not None]
    if beats and all(beat.boot_id != boot_id() for beat in beats):
        return False  # recorded on another machine, or before this one was started
    now = time.monotonic_ns()
    return any(now - b.monotonic_ns < _FRESH_NS for b in beats) or _launcher_lives(facts)


def _beat(directory: Path) -> Heartbeat | None:
    with suppress(OSError, RecordError):
        return read_heartbeat(directory / HEARTBEAT)
    return None


def _launcher_lives(facts: Mapping[str, Any]) -> bool:
    pid, created = facts.get("launcher_pid"), facts.get("created")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        run_since = datetime.fromisoformat(str(created)).timestamp()
        launcher_since = float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError):
        return False
    # A process younger than the run was given the launcher's number after the launcher left.
    return launcher_since < run_since + _START_SLACK_S
