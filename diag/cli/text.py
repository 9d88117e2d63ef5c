"""How the command line words things for people: lines and errors of at most 80 columns."""

from __future__ import annotations

import textwrap

WIDTH = 80


def format_error(slug: str, what: str, hint: str = "") -> str:
    """`error[slug]: what` and `hint: …`, wrapped; indented lines (code, carets) stay as they are."""
    lines = wrap(f"error[{slug}]: {what}")
    if hint:
        lines += wrap(f"hint: {hint}")
    return "\n".join(lines)


def wrap(text: str) -> list[str]:
    """`text` in lines of at most 80 columns, where words allow; continuations are indented by 2."""
    lines: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if line.startswith(" "):
            lines.append(line)
            continue
        lines += textwrap.wrap(
            line,
            WIDTH,
            initial_indent="  " if number else "",
            subsequent_indent="  ",
            break_long_words=False,  # a path or a command must stay copyable
            break_on_hyphens=False,
        )
    return lines
