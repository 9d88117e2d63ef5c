"""How numbers and lists are written for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TIB = 1 << 40
GIB = 1 << 30
MIB = 1 << 20


def size(num_bytes: float) -> str:
    """``64 MiB``, ``1.5 GiB``, ``141 GiB``, ``2.0 TiB``."""
    if num_bytes < GIB:
        return f"{num_bytes / MIB:.0f} MiB"
    scaled, unit = (num_bytes / GIB, "GiB") if num_bytes < TIB else (num_bytes / TIB, "TiB")
    return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 GPU``, ``4 GPUs``, ``2 processes``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(items: Iterable[object]) -> str:
    """``0, 2 and 5``."""
    words = [str(i) for i in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def version(parts: Sequence[int]) -> str:
    return ".".join(str(p) for p in parts)


def number(value: float) -> str:
    """``2`` and ``2.5``, never ``2.0``."""
    return f"{value:g}"
