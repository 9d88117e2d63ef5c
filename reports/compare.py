"""Which runs are explained and compared: a run is chosen, it finds its baseline, a refusal says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.errors import DiagError
from diag.record.store import RunDir, list_runs
from diag.reports import format as f
from diag.reports.differences import Difference, Script, differences, in_one_line, listed
from diag.reports.ending import as_clause, in_a_word, is_well
from diag.reports.glance import ended, first_rank_facts, has_steps, world_size

BASELINE_STEPS = 60
_FEWEST_STEPS = 20  # a baseline of fewer is chosen only where there is no other
_WARNING_ROOM = 69  # columns that a warning has in the text report's first line


def comparable_facts(run: RunDir) -> dict[str, Any]:
    """The fields that must agree, from run.json and the first rank's rank.json; None if unknown."""
    facts = run.facts()
    versions, args = facts.get("versions"), facts.get("script_args")
    precision = first_rank_facts(run).get("precision")
    return {
        "script": _script(facts),
        "module": facts.get("module"),
        "arguments": args if isinstance(args, list) else None,
        "device": facts.get("device"),
        "device name": facts.get("device_name"),
        "threads": facts.get("threads"),
        "torch": versions.get("torch") if isinstance(versions, Mapping) else None,
        "precision": None if precision == "unknown" else precision,
    }


def _script(facts: Mapping[str, Any]) -> Script | None:
    sha256 = facts.get("script_sha256")
    return Script(sha256, str(facts.get("script") or "")) if isinstance(sha256, str) else None


@dataclass(frozen=True)
class Chosen:
    """A run to explain; `newer` is the newest of those passed over, `note` says why it was."""

    run: RunDir
    newer: RunDir | None = None
    note: str = ""


def newest_multi_rank(runs_dir: Path) -> Chosen:
    """The newest run of more than one rank that ended well and has steps.

    Where there is none, the newest that has steps at all; then the newest.

    Raises:
        DiagError: `no-runs` or `no-multi-rank-run`.
    """
    runs = list_runs(runs_dir)
    several = [run for run in runs if world_size(run) > 1]
    if not several:
        raise _nothing_to_explain(runs_dir, len(runs))
    stepped = [run for run in several if has_steps(run)]
    well = [run for run in stepped if is_well(run.facts())]
    chosen = (well or stepped or several)[0]
    newer = several[: several.index(chosen)]
    return Chosen(chosen, newer[0], _passed_over(newer)) if newer else Chosen(chosen)


def _passed_over(newer: Sequence[RunDir]) -> str:
    run, facts = newer[0], newer[0].facts()
    word = in_a_word(ended(run, facts), facts.get("exit_code"))
    how = "recorded no step" if is_well(facts) else as_clause(word)
    if len(newer) == 1:
        return f"newer run {run.name} {how}"
    return f"{len(newer)} newer runs were passed over: the newest, {run.name}, {how}"


def _nothing_to_explain(runs_dir: Path, num_runs: int) -> DiagError:
    if not num_runs:
        return DiagError(
            "no-runs",
            f"{runs_dir} holds no run",
            "record one: diag run --gpus 2 --with-baseline train.py; or pass --runs-dir",
        )
    return DiagError(
        "no-multi-rank-run",
        f"none of the {f.plural(num_runs, 'run')} in {runs_dir} has more than one rank",
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
    related = [pair for pair in differing if _same_script(run, pair[0])]
    nearest, found = min(related or differing, key=lambda pair: len(pair[1]))
    if force:
        return (nearest,), (_forced(run, nearest, found),)
    return (), (in_one_line(f"{nearest.name} is no baseline: ", found, _WARNING_ROOM),)


def _same_script(run: RunDir, other: RunDir) -> bool:
    """By its path, module or contents: other scripts' runs are no near misses."""
    mine, theirs = run.facts(), other.facts()
    names = ("script", "module", "script_sha256")
    return any(mine.get(name) and mine.get(name) == theirs.get(name) for name in names)


def _usable(run: RunDir) -> bool:
    """Ended well, as far as known: a failed or running baseline is never chosen unasked."""
    return is_well(run.facts())


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
        DiagError: `baseline-not-smaller`, or `not-comparable` naming what differs unless `force`.
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
            f"{run.name} and {baseline.name} are not comparable: {listed(found)}",
            "record a baseline that agrees, or compare all the same with --force",
        )
    return (_forced(run, baseline, found),) if found else ()


def _forced(run: RunDir, baseline: RunDir, found: tuple[Difference, ...]) -> str:
    return f"{run.name} and {baseline.name} are compared by force: {listed(found)}"


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
