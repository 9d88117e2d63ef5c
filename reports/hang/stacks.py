"""Which frames of a stack are the user's, and which line stands for a rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from diag.record.evidence import Frame, RankEvidence, Thread
from diag.reports.hang.model import Place
from diag.reports.locations import parse_site

# The interpreter's own library, installed packages, torch built from source, and diag itself,
# whose probes appear under the top-level name of the checkout when it is installed editable.
_LIBRARY = re.compile(
    r"^<|/lib(64)?/python\d[\d.]*/|/(site|dist)-packages/|/torch/\w+/"
    r"|/diag/(__\w+__|labels|cli/|engine/|launch/|probes/|record/|watch/)"
    r"|/probes/(torch_seams|tracker|traffic|capture|patches|session|watchers|witness|reducers)\.py$"
)
_NO_PYTHON = re.compile(r"\.(c|cc|cpp|cu|h|hpp|so[\d.]*)$|\.so\b")


def is_users(frame: Frame) -> bool:
    """Whether this line is the user's own Python."""
    named = bool(frame.file) and not frame.native and not _NO_PYTHON.search(frame.file)
    return named and not _LIBRARY.search(frame.file)


def main_thread(rank: RankEvidence) -> Thread | None:
    """The one that trains; the only one, where none is marked."""
    marked = [thread for thread in rank.threads if thread.main or thread.name == "MainThread"]
    if marked:
        return marked[0]
    return rank.threads[0] if len(rank.threads) == 1 else None


def user_place(thread: Thread | None) -> Place | None:
    """The innermost line that is the user's; of a thread without one, the innermost Python line."""
    if thread is None:
        return None
    frames = [frame for frame in thread.frames if is_users(frame)]
    frames = frames or [frame for frame in thread.frames if not frame.native and frame.file]
    return Place(frames[0].file, frames[0].line, frames[0].function) if frames else None


def site_place(site: str) -> Place | None:
    """A collective's "file:line"."""
    known = parse_site(site)
    return Place(known.file, known.line) if known is not None else None


def failure_place(rank: RankEvidence) -> Place | None:
    failure = rank.failure
    if failure is None or not failure.file:
        return None
    return Place(failure.file, failure.line, failure.function)


def last_site(rank: RankEvidence) -> Place | None:
    """Where the rank issued its newest collective with a known line."""
    newest_first = sorted(rank.groups, key=lambda g: (-g.order, -g.entered, g.group))
    sites = (c.site for group in newest_first for c in reversed(group.recent))
    return next((place for site in sites if (place := site_place(site)) is not None), None)


def place_of(rank: RankEvidence) -> Place | None:
    """Where the rank failed, is, or was last heard of."""
    return failure_place(rank) or user_place(main_thread(rank)) or last_site(rank)


def most_common(places: Iterable[Place | None]) -> Place | None:
    """The line most ranks share; of equals the first by name, whoever was read first."""
    counted = Counter(place for place in places if place is not None)
    return min(counted, key=lambda place: (-counted[place], place), default=None)
