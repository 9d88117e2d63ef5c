"""The store: where runs lie, how they are named, and how one is found again.

Only names and run.json are handled here; what the ranks recorded is `reader`'s.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diag.errors import DiagError, UsageError
from diag.record.atomic import read_json_object, write_json_atomic

RUN_JSON = "run.json"
RANK_JSON = "rank.json"
HEARTBEAT = "heartbeat"
_RANKS = "ranks"
_LOGS = "logs"
_NAME = re.compile(r"\w[\w.+=@,-]{0,127}")
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class RunDir:
    """One run's directory; existence is not checked."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def run_json(self) -> Path:
        return self.path / RUN_JSON

    @property
    def ranks(self) -> Path:
        return self.path / _RANKS

    @property
    def logs(self) -> Path:
        return self.path / _LOGS

    def rank_dir(self, rank: int, restart: int = 0) -> Path:
        """Where `rank` records during its `restart`-th life; its writer creates it."""
        return self.ranks / f"{rank:05d}-{restart}"

    def rank_directories(self) -> list[Path]:
        """Of every rank and life, in order; empty where there is none or it cannot be listed."""
        try:
            return sorted(self.ranks.iterdir())
        except OSError:
            return []

    def facts(self) -> dict[str, Any]:
        """run.json, or {} where it is missing or unreadable (`reader` says why)."""
        try:
            return read_json_object(self.run_json)
        except (OSError, ValueError):
            return {}

    def write_run_json(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json by `facts`, atomically."""
        write_json_atomic(self.run_json, facts)

    def update_run_json(self, **fields: Any) -> None:
        """Replace the named fields of run.json, atomically; one process may do so at a time."""
        self.write_run_json({**self.facts(), **fields})


def default_runs_dir() -> Path:
    """$DIAG_RUNS_DIR, or ./diag-runs."""
    return Path(os.environ.get("DIAG_RUNS_DIR") or "diag-runs")


def create_run(runs_dir: Path, name: str | None, script: Path | str) -> RunDir:
    """Make a new, empty run directory (mode 0700) and return it.

    Args:
        runs_dir: the store; made when missing.
        name: wanted name; when taken, -2, -3 … is added. None: script's stem and the local time.
        script: what will run; only its stem is used.

    Raises:
        UsageError: `name` cannot be a directory's name.
        DiagError: `runs-dir-not-writable`, with the system's reason.
    """
    wanted = _default_name(script) if name is None else _checked_name(name)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        return _first_free(runs_dir, wanted)
    except OSError as error:
        raise DiagError(
            "runs-dir-not-writable",
            f"cannot create a run in {runs_dir}: {error.strerror or error}",
            "choose another directory with --runs-dir, or set DIAG_RUNS_DIR",
        ) from error


def _first_free(runs_dir: Path, wanted: str) -> RunDir:
    # mkdir is the test and the claim in one, so two launchers never share a directory.
    suffix = 1
    while True:
        path = runs_dir / (wanted if suffix == 1 else f"{wanted}-{suffix}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            suffix += 1
            continue
        (path / _RANKS).mkdir(mode=0o700)
        (path / _LOGS).mkdir(mode=0o700)
        return RunDir(path)


def _default_name(script: Path | str) -> str:
    stem = re.sub(r"[^\w+=@,-]", "-", Path(script).stem).strip("-")[:80] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _checked_name(name: str) -> str:
    if _NAME.fullmatch(name):
        return name
    raise UsageError(
        "bad-run-name",
        f"{name!r} cannot be a run's name",
        "use up to 128 letters, digits and . _ - + = @ , and begin with a letter or digit",
    )


def list_runs(runs_dir: Path) -> tuple[RunDir, ...]:
    """Every run in the store, newest first; empty when the store does not exist.

    Raises:
        DiagError: `runs-dir-not-readable`, with the system's reason.
    """
    try:
        children = [RunDir(p) for p in runs_dir.iterdir() if p.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise DiagError(
            "runs-dir-not-readable", f"cannot list {runs_dir}: {error.strerror or error}"
        ) from error
    return tuple(sorted(filter(_looks_like_run, children), key=_age_key, reverse=True))


def _looks_like_run(run: RunDir) -> bool:
    return run.run_json.exists() or run.ranks.is_dir()


def _age_key(run: RunDir) -> tuple[float, str]:
    # The launcher's own time survives copying the directory to another machine; mtimes do not.
    try:
        return datetime.fromisoformat(str(run.facts().get("created"))).timestamp(), run.name
    except ValueError:
        return _mtime(run), run.name


def _mtime(run: RunDir) -> float:
    try:
        return run.path.stat().st_mtime
    except OSError:
        return 0.0


def newest_run(runs_dir: Path, wanted: Callable[[RunDir], bool] = lambda _: True) -> RunDir | None:
    """The newest run for which `wanted` holds, or None."""
    return next(filter(wanted, list_runs(runs_dir)), None)


def find_run(runs_dir: Path, name_or_path: str | Path) -> RunDir:
    """A run by its name in the store, or by the path of its directory.

    Raises:
        DiagError: `no-such-run`, with the names that do exist.
    """
    text = str(name_or_path)
    is_name = os.sep not in text and text not in ("", ".", "..")
    for path in (runs_dir / text, Path(text)) if is_name else (Path(text),):
        if text and _is_directory(path):
            return RunDir(path.resolve())
    raise DiagError("no-such-run", f"no run {text!r} in {runs_dir}", _names_hint(runs_dir, text))


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, unreadable, or no path at all
        return False


def _names_hint(runs_dir: Path, text: str) -> str:
    names = [run.name for run in list_runs(runs_dir)]
    if not names:
        return f"{runs_dir} holds no run; record one with `diag run SCRIPT`, or pass --runs-dir"
    near = get_close_matches(text, names, n=_NAMES_SHOWN) or names[:_NAMES_SHOWN]
    more = len(names) - len(near)
    return f"there {'is' if len(names) == 1 else 'are'}: {', '.join(near)}" + (
        f", and {more} more (`diag runs`)" if more else ""
    )
