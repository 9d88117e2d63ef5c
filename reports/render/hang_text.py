"""A verdict as plain text of at most 80 columns: what, who and where, then the evidence."""

from __future__ import annotations

from collections.abc import Iterator

from diag.codes import CATALOGUE
from diag.reports import format as f
from diag.reports.hang.model import Verdict
from diag.reports.hang.words import collective_words
from diag.reports.render.layout import WIDTH, wrap

_SGR = {"proven": "1;31", "suspected": "1;33", "none": "1;36"}


def render_verdict(verdict: Verdict, *, colour: bool = False, width: int = WIDTH) -> str:
    """The whole verdict, ending in a newline. With `colour`, ANSI codes are added after layout."""
    sections = [
        _headline(verdict, colour, width),
        wrap(_sentence(verdict.why), width, "  "),
        _facts(verdict, width),
        _bullets("Evidence", verdict.evidence, width),
        _bullets("Could not be read", verdict.missing, width),
        _remedy(verdict, width),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def one_line(verdict: Verdict) -> str:
    """For a live line: "hang-missing-rank: rank 3 sleeps at train.py:88; ranks 0-2 wait in …"."""
    lead = verdict.code or (f"no hang ({verdict.pause})" if verdict.pause else "no hang")
    sure = "" if verdict.proven or not verdict.code else " (suspected)"
    return f"{lead}{sure}: {f.printable(verdict.why)}"


def _headline(verdict: Verdict, colour: bool, width: int) -> list[str]:
    if verdict.code is None:
        pause = f", but a pause ({verdict.pause})" if verdict.pause else " is seen"
        style, text = "none", f"{verdict.run}: no hang{pause}"
    else:
        style = "proven" if verdict.proven else "suspected"
        text = f"{verdict.run}: {verdict.code}, {style}: {CATALOGUE[verdict.code].title}"
    lines = wrap(text, width)
    return [f"\x1b[{_SGR[style]}m{line}\x1b[0m" for line in lines] if colour else lines


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def _facts(verdict: Verdict, width: int) -> list[str]:
    rows = [(key, value) for key, value in _rows(verdict) if value]
    return [line for key, value in rows for line in wrap(value, width, f"  {key:<12}")]


def _rows(verdict: Verdict) -> Iterator[tuple[str, str]]:
    busy = "busy" if verdict.code is None else "culprit" + "s" * (len(verdict.culprits) > 1)
    yield busy, f.rank_names(verdict.culprits) if verdict.culprits else ""
    place = verdict.location
    if place is not None:
        inside = f" in {place.function}" if place.function else ""
        yield "where", f"{place.file}:{place.line}{inside}"
    yield "waiting", f.rank_names(verdict.waiting) if verdict.waiting else ""
    pending = verdict.collective
    if pending is not None:
        yield "collective", f"{collective_words(pending)}, group {pending.group}"
    yield "after", f"{f.seconds(verdict.seconds_to_verdict)} without progress of any rank"


def _bullets(title: str, sentences: tuple[str, ...], width: int) -> list[str]:
    lines = [line for text in sentences for line in wrap(text, width, "  - ")]
    return [title, *lines] if lines else []


def _remedy(verdict: Verdict, width: int) -> list[str]:
    if not verdict.hint:
        return []
    lines = wrap(_sentence(verdict.hint), width, "  > ", "    ")
    return [
        *lines,
        *(wrap(f"see {CATALOGUE[verdict.code].docs}", width, "    ") if verdict.code else []),
    ]
