"""Results to text of at most 80 columns, or to the JSON contract ``diag.doctor/1``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from diag.doctor.checks import Result, has_nvidia, visible_gpus
from diag.doctor.facts import Facts, Missing
from diag.doctor.words import count, number

SCHEMA = "diag.doctor/1"
_WIDTH = 80
_INDENT = 8  # under the status
_CODE = 20
_WORST_FIRST = ("fail", "warn")


def to_json(facts: Facts, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "diag_version": facts.diag_version,
        "taken": facts.taken,
        "checks": [_check_json(r) for r in results],
    }


def _check_json(result: Result) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "code": result.code,
        "status": outcome.status,
        "title": outcome.title,
        "evidence": list(outcome.evidence),
        "hint": outcome.hint,
        "subject": result.subject,
        "docs": result.docs,
    }


def to_text(facts: Facts, results: Sequence[Result], problems: bool = False) -> str:
    """All checks by subject, or with `problems` only warnings and failures, worst first."""
    body = _problems(results) if problems else _by_subject(results)
    lines = [*_wrapped(f"diag doctor on {_machine(facts)}"), *body, "", *_closing(facts, results)]
    return "\n".join(lines) + "\n"


def _machine(facts: Facts) -> str:
    host = "this machine" if isinstance(facts.network, Missing) else facts.network.host_name
    return f"{host}: {', '.join(_parts(facts))}"


def _parts(facts: Facts) -> Iterator[str]:
    gpus = visible_gpus(facts)
    if not has_nvidia(facts):
        yield "no NVIDIA GPU"
    elif gpus:
        yield count(gpus, "visible GPU")
    else:
        yield "no usable GPU"
    if not isinstance(facts.cpu, Missing):
        yield f"{number(facts.cpu.usable)} core{'s' if facts.cpu.usable != 1 else ''}"
    if not isinstance(facts.torch_build, Missing):
        yield f"torch {facts.torch_build.version}"


def _by_subject(results: Sequence[Result]) -> Iterator[str]:
    for subject, group in groupby(results, key=lambda r: r.subject):
        members = list(group)
        yield ""
        yield subject
        for result in members:
            if result.status != "skip":
                yield from _shown(result)
        yield from _skipped([r for r in members if r.status == "skip"])


def _problems(results: Sequence[Result]) -> Iterator[str]:
    found = [r for r in results if r.status in _WORST_FIRST]
    yield ""
    if not found:
        yield "no problems"
    for result in sorted(found, key=lambda r: _WORST_FIRST.index(r.status)):
        yield from _shown(result)


def _shown(result: Result) -> Iterator[str]:
    head = f"  {result.status:<6}{result.code:<{_CODE}}"
    yield from _wrapped(result.outcome.title, head)
    if result.status not in _WORST_FIRST:
        return
    for line in result.outcome.evidence:
        yield from _wrapped(line, " " * _INDENT)
    if result.outcome.hint:
        yield from _wrapped(result.outcome.hint, " " * _INDENT + "-> ")


def _skipped(results: Sequence[Result]) -> Iterator[str]:
    """Checks skipped for the same reason share a line."""
    reasons = dict.fromkeys(r.outcome.title for r in results)
    for reason in reasons:
        codes = ", ".join(r.code for r in results if r.outcome.title == reason)
        yield from _wrapped(f"{codes}: {reason}", "  skip  ")


def _closing(facts: Facts, results: Sequence[Result]) -> Iterator[str]:
    if not has_nvidia(facts):
        yield "No NVIDIA GPU and no NVIDIA driver were found, so nothing here trains on a GPU."
        yield "Rehearsals on CPU ranks work: diag run --gpus 2 train.py"
        yield ""
    amount = {s: sum(r.status == s for r in results) for s in ("fail", "warn", "ok", "skip")}
    yield (
        f"{amount['fail']} failed, {count(amount['warn'], 'warning')}, "
        f"{amount['ok']} well, {amount['skip']} skipped"
    )
    if amount["fail"] or amount["warn"]:
        yield "What each means, and how to silence it: docs/codes/CODE.md"


def _wrapped(text: str, first: str = "") -> list[str]:
    """`text` after `first`, in lines of at most 80 columns that keep clear of `first`. A command
    or a path is never broken inside a word."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
