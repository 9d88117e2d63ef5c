"""Where did the speed-up go? Explains a recorded run against its baseline.

Without RUN: the newest run of several ranks that ended well, and its newest comparable baseline
(the fewest ranks; same script, arguments, device, precision, threads and torch). Without a baseline
the speed-up is an upper bound, and the command that would measure one is shown.

Exit code 0 whatever is found; 3 when there is no such run, or the two cannot be compared.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diag.codes import CATALOGUE
from diag.errors import DiagError, ExitCode, UsageError

if TYPE_CHECKING:
    from diag.record.reader import Run
    from diag.record.store import RunDir
    from diag.reports.model import Report

_MOST_REPEATS = 8  # of each size; more would cost time and change little


@dataclass(frozen=True)
class Options:
    """The command line of ``diag scaling-report``.

    Attributes:
        run: name in the store or path; None: the newest run of several ranks that
            ended well.
        baseline: name or path; None: the newest comparable run of fewer ranks.
        runs_dir: the store; None: the default one.
        force: compare runs that differ, with a warning.
        as_json, as_markdown: print that instead of text.
        html: also write one self-contained page here.
        ignore: codes of findings to leave out.
        repeats: take comparable runs of the same size together; with three or more on both
            sides the intervals hold between runs.
    """

    run: str | None = None
    baseline: str | None = None
    runs_dir: Path | None = None
    force: bool = False
    as_json: bool = False
    as_markdown: bool = False
    html: Path | None = None
    ignore: tuple[str, ...] = ()
    repeats: bool = False


def scaling_report(options: Options) -> int:
    """Explains the run, prints the report to stdout, returns the exit code.

    Raises:
        UsageError: --json with --md, or an ignored code that names no finding.
        DiagError: no such run, not comparable, or the page cannot be written.
    """
    _check(options)
    report = build_report(options)
    if options.html is not None:
        _write_page(options.html, report)
    _emit(_rendered(report, options))
    return int(ExitCode.OK)


def build_report(options: Options) -> Report:
    """Chooses the runs, reads them and explains."""
    from diag.record.reader import read_run
    from diag.record.store import default_runs_dir
    from diag.reports.compare import baseline_command, find_repeats
    from diag.reports.explain import explain

    runs_dir = options.runs_dir or default_runs_dir()
    chosen = _chosen(options, runs_dir)
    run = read_run(chosen.path)
    _refuse_single_rank(run)
    baselines, notes = _baselines(options, runs_dir, chosen)
    repeats = find_repeats(chosen.path.parent, chosen) if options.repeats else ()
    return explain(
        run,
        [read_run(baseline.path) for baseline in baselines],
        repeats=[read_run(repeat.path) for repeat in repeats[: _MOST_REPEATS - 1]],
        notes=notes,
        ignore=options.ignore,
        command=baseline_command(run.facts, runs_dir=options.runs_dir, cwd=Path.cwd()),
    )


def _chosen(options: Options, runs_dir: Path) -> RunDir:
    """The run that was named, or the newest worth explaining; a newer one is named on stderr."""
    from diag.record.store import find_run
    from diag.reports import format as f
    from diag.reports.compare import newest_multi_rank

    if options.run is not None:
        return find_run(runs_dir, options.run)
    found = newest_multi_rank(runs_dir)
    if found.newer is not None:
        where = [] if options.runs_dir is None else ["--runs-dir", str(options.runs_dir)]
        command = f.command(["diag", "scaling-report", found.newer.name, *where])
        print(f"diag: {found.note}; explain it with: {command}", file=sys.stderr, flush=True)
    return found.run


def _check(options: Options) -> None:
    if options.as_json and options.as_markdown:
        raise UsageError("one-format", "--json and --md exclude each other", "give one of them")
    speed = sorted(c.code for c in CATALOGUE.values() if c.kind == "speed")
    for code in options.ignore:
        if code not in speed:
            hint = f"the findings are: {', '.join(speed)}"
            raise UsageError("no-such-finding", f"there is no finding {code!r} to ignore", hint)


def _refuse_single_rank(run: Run) -> None:
    if run.world_size == 1:
        raise DiagError(
            "one-rank-run",
            f"{run.name} has 1 rank: there is no scaling to explain",
            "give the run of several ranks; this one can be its --baseline",
        )


def _baselines(
    options: Options, runs_dir: Path, run: RunDir
) -> tuple[tuple[RunDir, ...], tuple[str, ...]]:
    from diag.record.store import find_run
    from diag.reports.compare import check_baseline, find_baselines

    if options.baseline is None:
        # A run given by its path brings its neighbours with it.
        found, notes = find_baselines(run.path.parent, run, force=options.force)
        return found[: _MOST_REPEATS if options.repeats else 1], notes
    baseline = find_run(runs_dir, options.baseline)
    return (baseline,), check_baseline(run, baseline, options.force)


def _rendered(report: Report, options: Options) -> str:
    if options.as_json:
        from diag.reports.render.json import render_json

        return render_json(report)
    if options.as_markdown:
        from diag.reports.render.md import render_md

        return render_md(report)
    from diag.reports.render.text import render_text

    return render_text(report, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def _write_page(path: Path, report: Report) -> None:
    from diag.reports.render.html import render_html

    page = render_html(report)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DiagError(
            "cannot-write",
            f"cannot write {path}: {error.strerror or error}",
            "give --html a file in a directory that exists and can be written",
        ) from error


def _emit(text: str) -> None:
    """Print what the terminal's encoding can show; a name it cannot must not end the command."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
