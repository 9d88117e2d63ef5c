"""Run a training script on N ranks and record every one of them.

The script runs exactly as under `python SCRIPT ARGS`. Without an NVIDIA GPU the ranks rehearse
on CPU with gloo. Options go before SCRIPT; what follows it is the script's own.

Exit code: the script's own; 128+n when a rank dies by signal n; 2 for a script or an option
that cannot be used; 3 when diag itself fails; 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diag.cli.text import format_error
from diag.errors import UsageError

if TYPE_CHECKING:
    from diag.launch.launcher import RunResult
    from diag.launch.options import RunOptions
    from diag.launch.outcome import RankFailure


def run(options: RunOptions) -> int:
    """Runs the script, prints what came of it to stderr, returns the exit code.

    Raises:
        DiagError: bad input, or a failure of diag itself; nothing recorded is lost.
    """
    from diag.launch.launcher import launch
    from diag.launch.signals import Interrupted

    if options.target.startswith("-"):
        raise UsageError("no-such-option", f"{options.target} is neither an option nor a script")
    try:
        result = launch(options, say)
    except Interrupted as stop:  # before there was anything to record
        return 128 + stop.number
    if result.failure is not None:
        _report_failure(result, result.failure, options)
    elif result.ended_by == "signal":
        say(f"interrupted; what was recorded is in {result.run.path}")
    else:
        for line in closing_lines(result, options.runs_dir):
            say(line)
    return result.exit_code


def say(line: str) -> None:
    """A line of diag's own, apart from the script's output."""
    print(f"diag: {line}", file=sys.stderr, flush=True)


def closing_lines(result: RunResult, runs_dir: Path) -> tuple[str, ...]:
    """Where the record is and what to do with it."""
    from diag.record.store import default_runs_dir

    world = result.plan.world_size
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    first = _cut_short(result)
    if not result.probes:
        return (*first, f"probes were off: only the ranks' output is kept, in {result.run.logs}")
    if not result.recorded:
        return (*first, f"no rank imported torch, so only output is kept, in {result.run.logs}")
    recorded = (*first, f"recorded {ranks} in {result.run.path}")
    if result.plan.node_rank > 0:
        return recorded
    if world == 1:
        return (*recorded, "next: the same with --gpus N, then `diag scaling-report`")
    at_home = runs_dir == default_runs_dir()
    where = f" {result.run.path.name if at_home else result.run.path}"
    return (*recorded, f"next: diag scaling-report{where}")


def _cut_short(result: RunResult) -> tuple[str, ...]:
    """That --max-steps ended the script inside its loop: a final save, say, is missing."""
    if result.stopped_after is None:
        return ()
    steps = f"{result.stopped_after} optimizer step{'' if result.stopped_after == 1 else 's'}"
    return (f"ended after {steps} (--max-steps): nothing after the loop ran",)


def _report_failure(result: RunResult, failure: RankFailure, options: RunOptions) -> None:
    from diag.launch.failure import describe_failure

    text = describe_failure(
        failure,
        result.plan.world_size,
        result.plan.rehearsal,
        _stderr_of(failure, result.run.logs),
        result.run.logs,
    )
    shown = options.tee == "all" or (options.tee == "0" and failure.rank == 0)
    if text.evidence and not shown:
        print(text.evidence, end="", file=sys.stderr)
    print(format_error("rank-failed", text.what, text.hint), file=sys.stderr)
    if result.role == "baseline":
        say("the baseline failed, so the run was not started")


def _stderr_of(failure: RankFailure, logs: Path) -> str:
    from diag.launch.outcome import last_attempt

    path = logs / f"{failure.rank:05d}-{last_attempt(logs)}" / "stderr.log"
    try:
        return path.read_text(errors="replace")
    except OSError:  # a rank of another node, whose logs are there
        return ""
