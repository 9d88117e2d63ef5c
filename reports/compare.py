"""Which runs may be compared: a run finds its baseline, and a refusal names what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.errors import DiagError
from diag.record.atomic import read_json_object
from diag.record.store import RANK_JSON, RunDir, list_runs
from diag.reports import format as f

# What must agree: the name a person knows it by, and where it is written.
_RUN_FIELDS = (
    ("script", "script_sha256"),
    ("module", "module"),
    ("script arguments", "script_args"),
    ("device", "device"),
    ("device name", "device_name"),
    ("threads per rank", "threads"),
)
_WELL_ENDED = ("script", "max-steps")
BASELINE_STEPS = 60
_FEWEST_STEPS = 20  # a baseline of fewer is chosen only where there is no other


@dataclass(frozen=True)
class Difference:
    """One field in which two runs differ, with both values as a person reads them."""

    field: str
    run: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.field}: {self.run} against {self.baseline}"


def comparable_facts(run: RunDir) -> dict[str, Any]:
    """The fields that must agree, from run.json and the first rank's rank.json; None if unknown."""
    facts = run.facts()
    values = {name: facts.get(key) for name, key in _RUN_FIELDS}
    versions = facts.get("versions")
    values["torch version"] = versions.get("torch") if isinstance(versions, Mapping) else None
    values["precision"] = first_rank_facts(run).get("precision")
    return values


def differences(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Fields known in both runs whose values differ."""
    return tuple(
        Difference(name, _shown(value), _shown(baseline[name]))
        for name, value in run.items()
        if value is not None and baseline.get(name) is not None and value != baseline[name]
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f.command([str(item) for item in value]) or "none"
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a hash: its head is enough to tell


def first_rank_facts(run: RunDir) -> dict[str, Any]:
    """rank.json of the lowest rank's last life, or {}."""
    try:
        directories = sorted(run.ranks.iterdir(), key=lambda path: _rank_and_life(path.name))
    except OSError:
        return {}
    for directory in directories:
        try:
            return read_json_object(directory / RANK_JSON)
        except (OSError, ValueError):
            continue
    return {}


def _rank_and_life(name: str) -> tuple[int, int]:
    rank, _, life = name.partition("-")
    return (int(rank), -int(life)) if rank.isdigit() and life.isdigit() else (10**9, 0)


def world_size(run: RunDir) -> int:
    """As launched; 0 where unknown."""
    size = run.facts().get("world_size")
    return size if isinstance(size, int) else 0


def newest_multi_rank(runs_dir: Path) -> RunDir:
    """The newest run of more than one rank.

    Raises:
        DiagError: `no-runs` or `no-multi-rank-run`.
    """
    runs = list_runs(runs_dir)
    for run in runs:
        if world_size(run) > 1:
            return run
    if not runs:
        raise DiagError(
            "no-runs",
            f"{runs_dir} holds no run",
            "record one: diag run --gpus 2 --with-baseline train.py; or pass --runs-dir",
        )
    raise DiagError(
        "no-multi-rank-run",
        f"none of the {f.plural(len(runs), 'run')} in {runs_dir} has more than one rank",
        "record one: diag run --gpus 2 train.py; `diag runs` lists what there is",
    )


def find_baselines(
    runs_dir: Path, run: RunDir, force: bool = False
) -> tuple[tuple[RunDir, ...], tuple[str, ...]]:
    """Comparable runs of the fewest ranks, newest first; those of a few steps come last.

    Without any: nothing and a sentence on the nearest miss, or with `force` that one.
    """
    wanted = comparable_facts(run)
    size = world_size(run)
    smaller = [r for r in list_runs(runs_dir) if 0 < world_size(r) < size and _usable(r)]
    differing = [(r, differences(wanted, comparable_facts(r))) for r in smaller]
    matches = [r for r, found in differing if not found]
    if matches:
        matches.sort(key=lambda r: (_is_short(r), world_size(r)))
        return tuple(r for r in matches if world_size(r) == world_size(matches[0])), ()
    if not differing:
        return (), ()
    nearest, found = min(differing, key=lambda pair: len(pair[1]))
    if force:
        return (nearest,), (_forced(run, nearest, found),)
    return (), (f"{nearest.name} is no baseline: it differs in {listed(found)}",)


def _usable(run: RunDir) -> bool:
    """Ended well, as far as known: a failed or running baseline is never chosen unasked."""
    return run.facts().get("ended_by") in _WELL_ENDED and not run.facts().get("exit_code")


def _is_short(run: RunDir) -> bool:
    steps = first_rank_facts(run).get("steps")
    return isinstance(steps, int) and steps < _FEWEST_STEPS


def find_repeats(runs_dir: Path, run: RunDir) -> tuple[RunDir, ...]:
    """Comparable runs of as many ranks as `run`, newest first."""
    wanted = comparable_facts(run)
    return tuple(
        r
        for r in list_runs(runs_dir)
        if world_size(r) == world_size(run)
        and r.path.resolve() != run.path.resolve()
        and _usable(r)
        and not differences(wanted, comparable_facts(r))
    )


def check_baseline(run: RunDir, baseline: RunDir, force: bool) -> tuple[str, ...]:
    """Warnings about a baseline that was asked for.

    Raises:
        DiagError: `baseline-not-smaller`, or `not-comparable` naming the fields unless `force`.
    """
    if world_size(baseline) >= max(world_size(run), 1):
        raise DiagError(
            "baseline-not-smaller",
            f"{baseline.name} has {f.plural(world_size(baseline), 'rank')}, "
            f"{run.name} has {world_size(run)}: a baseline has fewer",
            "give the larger run first: diag scaling-report RUN --baseline SMALLER",
        )
    found = differences(comparable_facts(run), comparable_facts(baseline))
    if found and not force:
        raise DiagError(
            "not-comparable",
            f"{run.name} and {baseline.name} differ in {listed(found)}",
            "record a baseline that agrees, or compare all the same with --force",
        )
    return (_forced(run, baseline, found),) if found else ()


def _forced(run: RunDir, baseline: RunDir, found: Sequence[Difference]) -> str:
    return f"compared by force: {run.name} and {baseline.name} differ in {listed(found)}"


def listed(found: Sequence[Difference]) -> str:
    """ "threads per rank (4 against 1) and precision (bfloat16 against float32)"."""
    return f.listing([f"{d.field} ({d.run} against {d.baseline})" for d in found])


def baseline_command(
    facts: Mapping[str, Any], runs_dir: Path | None = None, cwd: Path | None = None
) -> str | None:
    """The command that would measure a baseline for the run of these facts; None if unknown.

    Args:
        runs_dir: where the run lies, when that is not where `diag run` would put it.
        cwd: a script below it is named relative to it.
    """
    target = _target(facts, cwd)
    if not target:
        return None
    words = ["diag", "run", "--gpus", "1", "--device", str(facts.get("device") or "auto")]
    if facts.get("threads") is not None and facts.get("device") == "cpu":
        words += ["--threads", str(facts["threads"])]
    words += ["--max-steps", str(BASELINE_STEPS), "--name", f"{facts.get('name', 'run')}-baseline"]
    words += ["--runs-dir", str(runs_dir)] if runs_dir is not None else []
    return f.command([*words, *target, *map(str, facts.get("script_args") or ())])


def _target(facts: Mapping[str, Any], cwd: Path | None) -> list[str]:
    """SCRIPT, or -m MODULE."""
    if facts.get("module"):
        return ["-m", str(facts["module"])]
    if not facts.get("script"):
        return []
    script = Path(str(facts["script"]))
    if cwd is not None and script.is_relative_to(cwd):
        script = script.relative_to(cwd)
    return [str(script)]
