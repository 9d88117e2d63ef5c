"""Is this machine fit to train? Checks torch, driver, GPUs, NCCL, host and limits.

Every check says what was found, what it costs if it is not well, and the command or setting
that mends it. Takes a few seconds and changes nothing. Exit code 0: nothing failed; 1: a
check failed (with --strict also: a check warned).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diag.codes import CATALOGUE
from diag.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from diag.doctor.checks import Result
    from diag.doctor.facts import Facts

IGNORE_VARIABLE = "DIAG_DOCTOR_IGNORE"  # codes, separated by commas


@dataclass(frozen=True)
class Options:
    """The command line of ``diag doctor``.

    Attributes:
        gpus: how many ranks are planned; None: one per visible GPU.
        nnodes: on how many machines like this one.
        as_json: print the ``diag.doctor/1`` document instead of text.
        problems: print warnings and failures only, worst first.
        strict: warnings count as failures.
        ignore: codes of checks to skip, besides those of DIAG_DOCTOR_IGNORE.
        runs_dir: where runs would be recorded; None: the default store.
    """

    gpus: int | None = None
    nnodes: int = 1
    as_json: bool = False
    problems: bool = False
    strict: bool = False
    ignore: tuple[str, ...] = ()
    runs_dir: Path | None = None


def doctor(options: Options) -> int:
    """Examines this machine, prints the result to stdout, returns the exit code.

    Raises:
        UsageError: ``--gpus`` or ``--nnodes`` is not positive, or an ignored code names no check.
    """
    from diag.doctor.collect import collect
    from diag.launch.options import check_at_least
    from diag.record.store import default_runs_dir

    check_at_least("--gpus", options.gpus, 1)
    check_at_least("--nnodes", options.nnodes, 1)
    ignore = ignored_codes(options.ignore, os.environ.get(IGNORE_VARIABLE, ""))
    return present(collect(options.runs_dir or default_runs_dir()), options, ignore)


def ignored_codes(given: Iterable[str], variable: str) -> frozenset[str]:
    """The codes to skip.

    Raises:
        UsageError: one of them is not the code of a check.
    """
    codes = frozenset([*given, *filter(None, (c.strip() for c in variable.split(",")))])
    checks = sorted(c.code for c in CATALOGUE.values() if c.kind == "check")
    for code in sorted(codes - set(checks)):
        hint = f"the checks are: {', '.join(checks)}"
        raise UsageError("no-such-check", f"there is no check {code!r} to ignore", hint)
    return codes


def present(facts: Facts, options: Options, ignore: frozenset[str] = frozenset()) -> int:
    """Judges `facts`, prints the result, returns the exit code."""
    from diag.doctor.catalogue import ALL
    from diag.doctor.checks import Plan, judge
    from diag.doctor.render import to_json, to_text

    results = judge(facts, Plan(options.gpus, ignore, options.nnodes), ALL)
    if options.as_json:
        sys.stdout.write(json.dumps(to_json(facts, results), indent=2) + "\n")
    else:
        sys.stdout.write(to_text(facts, results, options.problems))
    return exit_code(results, options.strict)


def exit_code(results: Sequence[Result], strict: bool) -> int:
    bad = ("fail", "warn") if strict else ("fail",)
    return int(ExitCode.CHECK_FAILED if any(r.status in bad for r in results) else ExitCode.OK)
