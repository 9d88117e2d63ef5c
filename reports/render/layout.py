"""Text in columns: wrapping, bullets and tables that never pass a width."""

from __future__ import annotations

import re
from collections.abc import Sequence

from diag.reports.format import clip, display_width, printable

WIDTH = 80
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|min|h|B|KiB|MiB|GiB|TiB)\b)")


def wrap(text: str, width: int = WIDTH, first: str = "", rest: str | None = None) -> list[str]:
    """Words of `text` in lines of at most `width` columns; a longer word is cut where it must be.

    `first` leads the first line, `rest` (spaces of the same width by default) the others.
    """
    rest = " " * display_width(first) if rest is None else rest
    lines: list[str] = []
    lead, current = first, ""
    for word in _words(text):
        for piece in _pieces(word, width - max(display_width(first), display_width(rest))):
            if current and display_width(lead + current) + 1 + display_width(piece) > width:
                lines.append(lead + current)
                lead, current = rest, piece
            else:
                current = f"{current} {piece}" if current else piece
    return [*lines, lead + current] if current else lines


def _words(text: str) -> list[str]:
    """The words of `text`; a number and its unit are one word."""
    bound = _BEFORE_UNIT.sub("\0", printable(text))
    return [word.replace("\0", " ") for word in bound.split()]


def _pieces(word: str, width: int) -> list[str]:
    """A word cut into pieces of at most `width` columns."""
    pieces: list[str] = []
    current = ""
    for c in word:
        if current and display_width(current + c) > width:
            pieces.append(current)
            current = ""
        current += c
    return [*pieces, current]


def pad(text: str, width: int, align: str) -> str:
    """`text` filled to `width` columns: align "<" left, ">" right."""
    space = " " * (width - display_width(text))
    return space + text if align == ">" else text + space


def table(
    rows: Sequence[Sequence[str]], align: str, width: int = WIDTH, indent: int = 2, gap: int = 2
) -> list[str]:
    """Rows in columns as wide as their widest cell; the last column is clipped to fit `width`.

    Args:
        rows: cells, the header first; all rows of one length.
        align: one "<" or ">" per column.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(display_width(row[i]) for row in cells) for i in range(len(align))]
    before_last = indent + sum(widths[:-1]) + gap * (len(align) - 1)
    widths[-1] = max(0, min(widths[-1], width - before_last))
    lines = []
    for row in cells:
        shown = [*row[:-1], clip(row[-1], widths[-1])]
        padded = [pad(cell, widths[i], align[i]) for i, cell in enumerate(shown)]
        lines.append((" " * indent + (" " * gap).join(padded)).rstrip())
    return lines


def table_width(rows: Sequence[Sequence[str]], indent: int = 2, gap: int = 2) -> int:
    """Columns the table would take unclipped."""
    num_columns = len(rows[0])
    widths = [max(display_width(row[i]) for row in rows) for i in range(num_columns)]
    return indent + sum(widths) + gap * (num_columns - 1)
