"""Why did it hang? Explains what the watcher of `diag run` found when a run stood still.

Without RUN: the newest run that has such evidence. The verdict is made again from the evidence in
the run's directory, so it can be read anywhere, on a copy too. A run that was restarted may have
hung more than once: all verdicts are shown, with --json the last one, or the one of --number.

Exit code 0 whatever is found; 3 when there is no such run, or it has no evidence of a hang.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diag.errors import DiagError, ExitCode, RecordError

if TYPE_CHECKING:
    from diag.record.store import RunDir
    from diag.reports.hang.model import Verdict

EVIDENCE = "evidence.json"


@dataclass(frozen=True)
class Options:
    """The command line of ``diag hang``.

    Attributes:
        run: name in the store or path; None: the newest run with evidence of a hang.
        number: this hang of the run only; None: all.
    """

    run: str | None = None
    runs_dir: Path | None = None
    number: int | None = None
    as_json: bool = False


def hang(options: Options) -> int:
    """Prints the verdicts to stdout, returns the exit code.

    Raises:
        DiagError: no such run, no evidence of a hang, or none that can be read.
    """
    from diag.record.store import default_runs_dir

    runs_dir = options.runs_dir or default_runs_dir()
    run = _chosen(options, runs_dir)
    verdicts = _verdicts(run, _wanted(run, options.number))
    sys.stdout.write(_json(verdicts[-1]) if options.as_json else _text(verdicts))
    return int(ExitCode.OK)


def hang_numbers(run: RunDir) -> tuple[int, ...]:
    """The run's hangs of which there is evidence, in order."""
    found = (path.parent.name for path in (run.path / "hang").glob(f"*/{EVIDENCE}"))
    return tuple(sorted(int(name) for name in found if name.isdecimal()))


def _chosen(options: Options, runs_dir: Path) -> RunDir:
    """The run that was named, or the newest that hung; a newer one is named on stderr."""
    from diag.record.store import find_run, newest_run

    if options.run is not None:
        return find_run(runs_dir, options.run)
    newest = newest_run(runs_dir)
    if newest is None:
        raise DiagError("no-runs", f"{runs_dir} holds no run", "record one with `diag run SCRIPT`")
    hung = newest_run(runs_dir, lambda run: bool(hang_numbers(run)))
    if hung is None:
        raise _no_evidence(newest, "the newest run, ")
    if hung.name != newest.name:
        note = (
            f"diag: the newest run, {newest.name}, has no evidence of a hang; this is {hung.name}"
        )
        print(note, file=sys.stderr, flush=True)
    return hung


def _wanted(run: RunDir, number: int | None) -> tuple[int, ...]:
    numbers = hang_numbers(run)
    if not numbers:
        raise _no_evidence(run)
    if number is None:
        return numbers
    if number not in numbers:
        there = ", ".join(map(str, numbers))
        hint = f"there {'is' if len(numbers) == 1 else 'are'}: {there}"
        raise DiagError("no-such-hang", f"{run.name} has no evidence of a hang {number}", hint)
    return (number,)


def _no_evidence(run: RunDir, lead: str = "") -> DiagError:
    from diag.reports.ending import as_clause, in_a_word
    from diag.reports.glance import ended

    facts = run.facts()
    how = as_clause(in_a_word(ended(run, facts), facts.get("exit_code")))
    return DiagError(
        "no-hang-evidence",
        f"there is no evidence of a hang in {lead}{run.name}; it {how}",
        "evidence is collected by `diag run` when the ranks stand still; what has been recorded "
        "is listed by `diag runs`",
    )


def _verdicts(run: RunDir, numbers: Sequence[int]) -> list[tuple[int, Verdict]]:
    """One that cannot be read costs only itself, unless there is no other."""
    found: list[tuple[int, Verdict]] = []
    failures: list[DiagError] = []
    for number in numbers:
        try:
            found.append((number, _judged(run.path / "hang" / str(number) / EVIDENCE)))
        except DiagError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    for failure in failures:
        print(f"diag: {failure.what}", file=sys.stderr, flush=True)
    return found


def _judged(path: Path) -> Verdict:
    from diag.record.evidence_json import read_evidence
    from diag.reports.hang.verdict import judge

    try:
        return judge(read_evidence(path))
    except OSError as error:
        raise RecordError(
            "evidence-unreadable", f"cannot read {path}: {error.strerror or error}"
        ) from error


def _json(numbered: tuple[int, Verdict]) -> str:
    from diag.reports.render.hang_json import verdict_json

    number, verdict = numbered
    return json.dumps(verdict_json(verdict) | {"number": number}, indent=2, allow_nan=False) + "\n"


def _text(verdicts: Sequence[tuple[int, Verdict]]) -> str:
    from diag.reports.render.hang_text import render_verdict

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    texts = [render_verdict(verdict, colour=colour) for _, verdict in verdicts]
    if len(texts) > 1:
        texts = [
            f"Hang {number}\n\n{text}" for (number, _), text in zip(verdicts, texts, strict=True)
        ]
    text = "\n".join(texts)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
