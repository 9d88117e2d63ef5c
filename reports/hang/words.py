"""How the parts of a verdict are worded; numbers and ranks through diag.reports.format."""

from __future__ import annotations

import signal
from collections.abc import Collection
from pathlib import PurePath

from diag.reports import format as f
from diag.reports.hang.model import Pending, Place

_MOST_MESSAGE = 160  # characters of an exception's message


def place_words(place: Place) -> str:
    """ "train.py:41 in main"."""
    inside = f" in {place.function}" if place.function not in ("", "<module>") else ""
    return f"{PurePath(place.file).name}:{place.line}{inside}"


def at(place: Place | None) -> str:
    """ " at train.py:41 in main"; "" where unknown."""
    return f" at {place_words(place)}" if place is not None else ""


def collective_words(pending: Pending | None) -> str:
    """ "all_reduce number 41 (4.00 MiB of float32)"."""
    if pending is None or not pending.op:
        return "a collective"
    op = "the all_reduce of DDP's gradients" if pending.op == "gradients" else pending.op
    size = f.size(pending.num_bytes) if pending.num_bytes else ""
    payload = " of ".join(part for part in (size, pending.dtype) if part)
    return f"{op} number {pending.seq}" + (f" ({payload})" if payload else "")


def verb(ranks: Collection[int], one: str, many: str) -> str:
    return one if len(ranks) == 1 else many


def who(ranks: Collection[int]) -> str:
    """ "rank 1", "ranks 0-3 and 7"."""
    return f.rank_names(sorted(ranks))


def wait_words(waiting: Collection[int], pending: Pending | None, place: Place | None) -> str:
    """ "; ranks 0 and 2 wait in all_reduce number 41 at train.py:41"; "" where nobody waits."""
    if not waiting:
        return ""
    waits = verb(waiting, "waits", "wait")
    return f"; {who(waiting)} {waits} in {collective_words(pending)}{at(place)}"


def signal_words(exit_code: int) -> str:
    """ "SIGKILL" for -9."""
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return f.shortened(f.printable(lines[0]), _MOST_MESSAGE) if lines else ""
