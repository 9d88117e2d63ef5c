"""Pure formatters: numbers with their unit, plurals, rank lists, text that is safe to print.

Everything a person reads goes through here, so that one number never looks two ways.
ASCII only: reports are pasted into issues and read over serial consoles.
"""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections.abc import Sequence

UNKNOWN = "-"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def significant(value: float, digits: int = 3) -> str:
    """`value` in `digits` significant digits, never in exponent form: 18.2, 0.0312, 1230."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(0, digits - 1 - magnitude)}f}"


def fixed(value: float | None, decimals: int) -> str:
    """A table cell: `value` with `decimals` digits after the point; no minus before a zero."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def decimals_for(scale: float | None) -> int:
    """Digits after the point for a column whose largest number is about `scale`."""
    if scale is None or scale >= 10:
        return 1
    return 2 if scale >= 1 else 3


def ms(value: float | None) -> str:
    """Milliseconds in a sentence: "18.2 ms"; below a microsecond "0 ms"."""
    if value is None:
        return UNKNOWN
    return f"{significant(value) if abs(value) >= 0.001 else 0} ms"


def percent(share: float | None) -> str:
    """A share 0..1 as "70%", or "0.4%" below 1%."""
    if share is None:
        return UNKNOWN
    value = 100 * share
    if abs(value) < 0.05:
        return "0%"
    return f"{value:.0f}%" if abs(value) >= 0.95 else f"{value:.1f}%"


def small_percent(share: float | None) -> str:
    """A share that is small when all is well, to two digits: "0.031%", "1.2%"."""
    return UNKNOWN if share is None else f"{significant(100 * share, 2)}%"


def speedup(value: float | None, decimals: int = 1) -> str:
    """A speed-up: "1.42x", "2.8x", "31x"; `decimals=2` in tables, where rows are compared."""
    if value is None:
        return UNKNOWN
    digits = max(decimals, 2) if value < 1.995 else decimals if value < 19.95 else decimals - 1
    return f"{value:.{digits}f}x"


def factor(value: float) -> str:
    """An ideal factor: "4x", "1.5x"."""
    return f"{value:.0f}x" if value == round(value) else f"{value:.2g}x"


def rate(value: float | None, unit: str) -> str:
    """A throughput as "1230 samples/s"."""
    return UNKNOWN if value is None else f"{significant(value)} {unit}/s"


def byte_unit(num_bytes: float) -> tuple[int, str]:
    """The binary unit in which `num_bytes` is below 1000, and its size in bytes."""
    exponent = 0
    while abs(num_bytes) / 1024**exponent >= 1000 and exponent < len(_BYTE_UNITS) - 1:
        exponent += 1
    return 1024**exponent, _BYTE_UNITS[exponent]


def size(num_bytes: float | None) -> str:
    """Bytes in binary units: "1.50 GiB"."""
    if num_bytes is None:
        return UNKNOWN
    scale, unit = byte_unit(num_bytes)
    return f"{num_bytes:.0f} B" if scale == 1 else f"{significant(num_bytes / scale)} {unit}"


def seconds(value: float | None) -> str:
    """A duration a person reads: "0.8 s", "42.0 s", "3 min 20 s", "2 h 05 min"."""
    if value is None:
        return UNKNOWN
    if abs(value) < 99.95:
        return f"{fixed(value, 1)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def age(value: float) -> str:
    """How long ago, in its largest unit: "just now", "3 min ago", "5 d ago"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length:
            return f"{int(value // length)} {unit} ago"
    return "just now"


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """ "1 rank", "4 ranks"."""
    return f"{count} {noun if count == 1 else plural_noun or noun + 's'}"


def listing(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def rank_numbers(ranks: Sequence[int]) -> str:
    """ "0-3, 7": runs of three or more are folded."""
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    parts = [
        [f"{span[0]}-{span[-1]}"] if len(span) > 2 else [str(rank) for rank in span]
        for span in spans
    ]
    return ", ".join(text for part in parts for text in part)


def rank_names(ranks: Sequence[int], most: int = 8) -> str:
    """ "rank 2", "ranks 1 and 3", "ranks 0-3 and 7", "12 ranks (0-5, 8, ...)" when many."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    parts = rank_numbers(ranks).split(", ")
    if len(parts) > most:
        return f"{len(ranks)} ranks ({', '.join(parts[:most])}, ...)"
    return f"ranks {listing(parts)}"


def shortened(text: str, most: int) -> str:
    """At most so many characters, the last a "…" where some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """User-made text made safe for a terminal: control and format characters are dropped.

    A run name or a file name may hold escape sequences or right-to-left marks.
    """
    kept = (" " if c in "\t\n\r" else c for c in text)
    return "".join(c for c in kept if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: wide characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def clip(text: str, width: int) -> str:
    """`text` in at most `width` columns, with "..." where something was cut."""
    if display_width(text) <= width:
        return text
    kept = ""
    for c in text:
        if display_width(kept + c) > width - 3:
            break
        kept += c
    return kept + "..." if width > 3 else kept[:width]


def shell_quote(word: str) -> str:
    """One word of a command line; what a terminal would obey is written as an escape."""
    if printable(word) == word:
        return shlex.quote(word)
    unsafe = (c if c in printable(c) and c not in "'\\" else _escape(c) for c in word)
    return f"$'{''.join(unsafe)}'"


def _escape(c: str) -> str:
    """`c` as bash's $'...' writes it."""
    if c in "'\\":
        return f"\\{c}"
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"


def command(argv: Sequence[str]) -> str:
    """A command line that a shell reads back as exactly `argv`."""
    return shlex.join(argv)


def command_lines(line: str, width: int, indent: str = "  ") -> list[str]:
    r"""A shell command over several lines, cut between words with ``\``: still pastable.

    A single word longer than `width` is left whole: cutting it would change the command.
    """
    lines: list[str] = []
    current = indent
    for word in map(shell_quote, shlex.split(line)):
        room = width - len(" \\")
        if current.strip() and display_width(current) + 1 + display_width(word) > room:
            lines.append(f"{current} \\")
            current = indent + "  "
        current = f"{current}{'' if not current.strip() else ' '}{word}"
    return [*lines, current]
