"""Lists the recorded runs, newest first: name, ranks, device, steps, how it ended, age, script."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from diag.errors import ExitCode

if TYPE_CHECKING:
    from diag.record.store import RunDir

SCHEMA = "diag.runs/1"
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Options:
    """The command line of ``diag runs``."""

    runs_dir: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Listed:
    """One run as listed; None where the record does not say.

    Attributes:
        steps: optimizer steps of its first rank.
        ended: run.json's `ended_by`, "running", or "killed" when nothing says how it ended.
        created: ISO 8601.
    """

    name: str
    path: str
    ranks: int | None
    device: str | None
    steps: int | None
    ended: str
    exit_code: int | None
    created: str | None
    script: str | None


def runs(options: Options) -> int:
    """Prints the store's runs to stdout, returns the exit code."""
    from diag.record.store import default_runs_dir, list_runs

    runs_dir = options.runs_dir or default_runs_dir()
    listed = [describe(run) for run in list_runs(runs_dir)]
    if options.as_json:
        contents = {"schema": SCHEMA, "runs": [asdict(one) for one in listed]}
        sys.stdout.write(json.dumps(contents, indent=2) + "\n")
    else:
        sys.stdout.write(render(listed, runs_dir, time.time()))
    return int(ExitCode.OK)


def describe(run: RunDir) -> Listed:
    """What run.json and the first rank's rank.json say."""
    from diag.reports.compare import first_rank_facts

    facts = run.facts()
    target = facts.get("module") or facts.get("script")
    return Listed(
        name=run.name,
        path=str(run.path),
        ranks=_integer(facts.get("world_size")),
        device=_text(facts.get("device")),
        steps=_steps(run, first_rank_facts(run)),
        ended=_ended(run, facts),
        exit_code=_integer(facts.get("exit_code")),
        created=_text(facts.get("created")),
        script=_text(target),
    )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _steps(run: RunDir, rank: dict[str, Any]) -> int | None:
    """From rank.json, or the heartbeat of a run that is going on or was killed."""
    steps = _integer(rank.get("steps"))
    if rank.get("ended") is not None and steps is not None:
        return steps
    return _beaten_steps(run) or steps


def _beaten_steps(run: RunDir) -> int | None:
    from diag.errors import RecordError
    from diag.record.heartbeat import read_heartbeat
    from diag.record.store import HEARTBEAT

    for directory in _rank_directories(run):
        try:
            return read_heartbeat(directory / HEARTBEAT).step
        except (OSError, RecordError):
            continue
    return None


def _rank_directories(run: RunDir) -> list[Path]:
    try:
        return sorted(run.ranks.iterdir())
    except OSError:
        return []


def _ended(run: RunDir, facts: dict[str, Any]) -> str:
    from diag.record.liveness import is_running

    ended_by = facts.get("ended_by")
    if isinstance(ended_by, str):
        return ended_by
    return "running" if is_running(facts, _rank_directories(run)) else "killed"


def render(listed: Sequence[Listed], runs_dir: Path, now: float) -> str:
    """The table, at most 80 columns. now: Unix time."""
    from diag.reports.render.layout import table, wrap

    if not listed:
        text = f"{runs_dir} holds no run. Record one: diag run --gpus 2 --with-baseline train.py"
        return "\n".join(wrap(text)) + "\n"
    header = ["name", "ranks", "device", "steps", "ended", "age", "script"]
    rows = [header, *(_cells(one, now) for one in listed)]
    return "\n".join(table(rows, "<><><<<", indent=0)) + "\n"


def _cells(one: Listed, now: float) -> list[str]:
    from diag.reports.format import UNKNOWN, clip, printable

    return [
        clip(printable(one.name), _LONGEST_NAME),
        UNKNOWN if one.ranks is None else str(one.ranks),
        clip(printable(one.device or UNKNOWN), 6),
        UNKNOWN if one.steps is None else str(one.steps),
        clip(printable(f"exit {one.exit_code}" if one.exit_code else one.ended), 9),
        _age(one.created, now),
        PurePath(one.script).name if one.script else UNKNOWN,
    ]


def _age(created: str | None, now: float) -> str:
    from diag.reports.format import UNKNOWN, age

    try:
        return age(now - datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return UNKNOWN
