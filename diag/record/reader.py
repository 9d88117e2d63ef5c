"""Reads a run directory back, in whatever state it was left. Deletes and repairs nothing.

What is missing or damaged becomes a plain sentence in `Run.lost`; what a person should know
before believing the rest, one in `Run.warnings`. Only a directory that holds no run, or one
written by a newer diag, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diag.errors import RecordError
from diag.record.atomic import read_json_object
from diag.record.columns import column
from diag.record.liveness import is_running
from diag.record.schema import SCHEMA_MAJOR, SCHEMA_MINOR
from diag.record.store import RANK_JSON, RunDir
from diag.record.streamreader import StreamsRead, read_streams

_RANK_DIRECTORY = re.compile(r"(\d{5,9})-(\d{1,9})")


@dataclass(frozen=True)
class RankRecord:
    """What one rank recorded during its last life.

    Attributes:
        facts: rank.json, {} where it is missing or damaged.
        restart: 0-based number of that life.
        closed: the rank ended its record itself; False if it was killed, or still runs.
    """

    rank: int
    restart: int
    directory: Path
    facts: Mapping[str, Any]
    steps: pa.Table
    collectives: pa.Table
    gauges: pa.Table
    events: pa.Table
    closed: bool


@dataclass(frozen=True)
class Run:
    """A run directory as read.

    Attributes:
        facts: run.json, {} where it is missing or damaged.
        ranks: by rank number; ranks that left nothing are absent.
        warnings: sentences about the state of the run.
        lost: sentences about what is not there.
        running: the run had not ended when it was read.
    """

    name: str
    path: Path
    facts: Mapping[str, Any]
    ranks: Mapping[int, RankRecord]
    warnings: tuple[str, ...]
    lost: tuple[str, ...]
    running: bool = False

    @property
    def world_size(self) -> int:
        """As launched; where run.json does not say, as many as the ranks found need."""
        stated = self.facts.get("world_size")
        return stated if isinstance(stated, int) and stated > 0 else max(self.ranks, default=-1) + 1


def read_run(path: Path) -> Run:
    """Read the run in directory `path`.

    Raises:
        RecordError: `not-a-run`, `unreadable-run`, `empty-run`, or `newer-record` naming both
            versions.
    """
    run_dir = RunDir(path)
    if not path.is_dir():
        raise RecordError("not-a-run", f"{path} is not a directory")
    facts, facts_warning = _run_facts(run_dir)
    directories, restart = _last_life(run_dir)
    if not directories:
        raise RecordError("empty-run", f"{path} holds no rank's record", _empty_hint(facts))
    running = is_running(facts, directories.values())
    notes = _Notes()
    ranks = {r: _read_rank(r, restart, d, notes, running) for r, d in sorted(directories.items())}
    draft = Run(path.name, path, facts, ranks, (), (), running)
    warnings = (*facts_warning, *_state_warnings(draft, restart))
    return Run(
        path.name, path, facts, ranks, warnings, (*_missing(draft), *notes.sentences()), running
    )


class _Notes:
    """Clauses by the ranks they hold for, so that 64 ranks do not give 64 sentences."""

    def __init__(self) -> None:
        self._ranks: dict[str, list[int]] = {}

    def add(self, rank: int, clauses: Iterable[str]) -> None:
        for clause in clauses:
            self._ranks.setdefault(clause, []).append(rank)

    def sentences(self) -> tuple[str, ...]:
        return tuple(f"{_named(ranks)}: {clause}" for clause, ranks in self._ranks.items())


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 8:
        return f"{len(ranks)} ranks ({ranks[0]} to {ranks[-1]})"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _run_facts(run_dir: RunDir) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        facts = read_json_object(run_dir.run_json)
    except FileNotFoundError:
        return {}, ("run.json is missing: what was launched, and how it ended, is unknown",)
    except (OSError, ValueError):
        return {}, ("run.json is damaged: what was launched, and how it ended, is unknown",)
    _refuse_newer(facts, run_dir.run_json)
    return facts, ()


def _refuse_newer(facts: Mapping[str, Any], path: Path) -> None:
    schema = facts.get("schema")
    schema = schema if isinstance(schema, dict) else {}
    major = schema.get("major")
    if isinstance(major, int) and major > SCHEMA_MAJOR:
        raise RecordError(
            "newer-record",
            f"{path} is of schema {major}.{schema.get('minor', 0)}; "
            f"this diag reads up to {SCHEMA_MAJOR}.{SCHEMA_MINOR}",
            "upgrade diag: pip install --upgrade diag",
        )


def _last_life(run_dir: RunDir) -> tuple[dict[int, Path], int]:
    """Rank directories of the highest restart any rank has, and that restart.

    All ranks restart together, so an older life of one rank has no counterpart in the others.
    """
    lives: dict[int, dict[int, Path]] = {}
    for directory in _children(run_dir.ranks):
        match = _RANK_DIRECTORY.fullmatch(directory.name)
        if match and directory.is_dir():
            lives.setdefault(int(match[2]), {})[int(match[1])] = directory
    last = max(lives, default=0)
    return lives.get(last, {}), last


def _children(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RecordError(
            "unreadable-run", f"cannot list {directory}: {error.strerror or error}"
        ) from error


def _empty_hint(facts: Mapping[str, Any]) -> str:
    if facts.get("probes") is False:
        return "it ran with its probes off (--probes off, DIAG_OFF=1): only its logs/ were kept"
    if facts.get("ended_by"):
        return f"the run ended ({facts['ended_by']}) before any rank recorded; see its logs/"
    return "no rank has started to record yet, or this is not a run's directory"


def _read_rank(
    rank: int, restart: int, directory: Path, notes: _Notes, running: bool
) -> RankRecord:
    facts, facts_problem = _rank_facts(directory)
    streams = read_streams(directory)
    notes.add(rank, facts_problem)
    notes.add(rank, _stream_problems(streams, running))
    notes.add(rank, _event_clauses(streams.tables["events"], facts))
    return RankRecord(rank, restart, directory, facts, **streams.tables, closed=streams.closed)


def _rank_facts(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        facts = read_json_object(directory / RANK_JSON)
    except FileNotFoundError:
        return {}, ("rank.json is missing",)
    except (OSError, ValueError):
        return {}, ("rank.json is damaged",)
    _refuse_newer(facts, directory / RANK_JSON)
    return facts, ()


def _stream_problems(streams: StreamsRead, running: bool) -> tuple[str, ...]:
    if streams.closed or running:
        return streams.problems
    ended = "was ended before it closed its record; its last second may be missing"
    return (*streams.problems, ended)


def _event_clauses(events: pa.Table, facts: Mapping[str, Any]) -> list[str]:
    """What the rank itself noted as lost: room for its collectives, rows, probes that failed."""
    failures = facts.get("probe_failures")
    stated = failures.items() if isinstance(failures, dict) else ()
    counts = {where: count for where, count in stated if isinstance(count, int)}
    clauses, refused = [], ""
    for kind, detail in _noted(events):
        where, count = detail.get("where"), detail.get("count")
        if kind == "rollup":
            clauses.append(_rollup_clause(detail))
        elif isinstance(where, str) and isinstance(count, int):
            counts[where] = max(count, counts.get(where, 0))
            refused = _refused_clause(detail) or refused
    clauses += [f"the probe {where!r} failed {_times(n)}" for where, n in counts.items() if n]
    return [*clauses, refused] if refused else clauses


def _refused_clause(detail: Mapping[str, Any]) -> str:
    rows = detail.get("lost_rows")
    return f"{rows} rows could not be written ({detail.get('reason')})" if rows else ""


def _noted(events: pa.Table) -> Iterable[tuple[str, dict[str, Any]]]:
    for row in events.select(["kind", "detail"]).filter(_wanted(events)).to_pylist():
        try:
            detail = json.loads(row["detail"] or "{}")
        except ValueError:
            continue
        if isinstance(detail, dict):
            yield row["kind"], detail


def _wanted(events: pa.Table) -> pa.Array:
    return pc.is_in(
        events["kind"].cast(pa.string()), column(["rollup", "probe_failure"], pa.string())
    )


def _rollup_clause(detail: Mapping[str, Any]) -> str:
    step = detail.get("from_step")
    if detail.get("what") == "stopped":
        return f"the record reached its size limit: nothing is recorded from step {step} on"
    return f"the record neared its size limit: collectives are per-step sums from step {step} on"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _state_warnings(run: Run, restart: int) -> Iterable[str]:
    if run.running:
        yield "the run is still going on; this is its state so far"
    elif run.facts and run.facts.get("ended_by") is None:
        yield "the launcher was killed: how the run ended is unknown"
    if restart:
        yield f"the run was restarted {_times(restart)}; only its last life is read"


def _missing(run: Run) -> tuple[str, ...]:
    # Not range(world_size) as a list: a damaged run.json may state any number.
    count = run.world_size - len(run.ranks)
    if count <= 0:
        return ()
    first = list(islice((r for r in range(run.world_size) if r not in run.ranks), 9))
    named = _named(first) if count <= 8 else f"{count} ranks (the first is {first[0]})"
    return (f"{named} left no record",)
