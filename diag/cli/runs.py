"""Lists the recorded runs, newest first: name, ranks, device, steps, how it ended, age, script."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from diag.cli.text import WIDTH
from diag.errors import ExitCode
from diag.reports.format import UNKNOWN, age, clip, display_width, printable

if TYPE_CHECKING:
    from diag.record.store import RunDir

SCHEMA = "diag.runs/1"
_COLUMNS = {  # with their alignment
    "name": "<", "ranks": ">", "device": "<", "steps": ">", "ended": "<", "age": "<", "script": "<",
}  # fmt: skip
_CHOICES = tuple(
    tuple(column for column in _COLUMNS if column not in left_out)
    for left_out in ((), ("device",), ("device", "script"))
)
_SHORTEST_SCRIPT = 12
_GAP = 2


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
        width = max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        sys.stdout.write(render(listed, runs_dir, time.time(), width))
    return int(ExitCode.OK)


def describe(run: RunDir) -> Listed:
    """What run.json and the first rank's rank.json say."""
    from diag.reports.glance import ended, num_steps

    facts = run.facts()
    target = facts.get("module") or facts.get("script")
    return Listed(
        name=run.name,
        path=str(run.path),
        ranks=_integer(facts.get("world_size")),
        device=_text(facts.get("device")),
        steps=num_steps(run),
        ended=ended(run, facts),
        exit_code=_integer(facts.get("exit_code")),
        created=_text(facts.get("created")),
        script=_text(target),
    )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def render(listed: Sequence[Listed], runs_dir: Path, now: float, width: int = WIDTH) -> str:
    """The table, at most `width` columns. now: Unix time.

    A name is what the other commands are given, so it is never cut: where room is short, columns
    that matter less are left out, and a name too long even so has a line to itself.
    """
    from diag.reports.render.layout import table, wrap

    if not listed:
        text = f"{runs_dir} holds no run. Record one: diag run --gpus 2 --with-baseline train.py"
        return "\n".join(wrap(text)) + "\n"
    rows = [{name: name for name in _COLUMNS}, *(_cells(one, now) for one in listed)]
    shown = next((c for c in _CHOICES if _needed(rows, c) <= width), _CHOICES[-1])
    room = width - _needed(rows, shown[1:]) - _GAP
    names = [row["name"] if display_width(row["name"]) <= room else "" for row in rows]
    cells = [[name, *(row[c] for c in shown[1:])] for name, row in zip(names, rows, strict=True)]
    lines = table(cells, "".join(_COLUMNS[c] for c in shown), width, indent=0, gap=_GAP)
    folded = zip(rows, names, lines, strict=True)
    return "".join(
        f"{line}\n" if name else f"{row['name']}\n{line}\n" for row, name, line in folded
    )


def _needed(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> int:
    """The width of these columns; the script's may be clipped, down to a few letters."""
    widest = {c: max(display_width(row[c]) for row in rows) for c in columns}
    if "script" in widest:
        widest["script"] = min(widest["script"], _SHORTEST_SCRIPT)
    return sum(widest.values()) + _GAP * (len(columns) - 1)


def _cells(one: Listed, now: float) -> dict[str, str]:
    from diag.reports.ending import in_a_word

    return {
        "name": printable(one.name),
        "ranks": UNKNOWN if one.ranks is None else str(one.ranks),
        "device": clip(printable(one.device or UNKNOWN), 6),
        "steps": UNKNOWN if one.steps is None else str(one.steps),
        "ended": clip(printable(in_a_word(one.ended, one.exit_code)), 22),
        "age": _age(one.created, now),
        "script": printable(PurePath(one.script).name) if one.script else UNKNOWN,
    }


def _age(created: str | None, now: float) -> str:
    try:
        return age(now - datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return UNKNOWN
