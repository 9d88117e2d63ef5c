"""A probe that fails is contained, counted and reported; the host never hears of it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("diag.probes")
log.addHandler(logging.NullHandler())
log.propagate = False


class Failures:
    """Counts of contained failures by place, with the first message of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def note(self, where: str, error: BaseException) -> None:
        self.counts[where] = self.counts.get(where, 0) + 1
        if where not in self.first:
            self.first[where] = f"{type(error).__name__}: {error}"[:500]
            log.debug("probe %s failed", where, exc_info=error)

    def contained(self, where: str, probe: Callable[P, R]) -> Callable[P, R | None]:
        """`probe`, yielding None instead of raising."""

        @functools.wraps(probe)
        def safe(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return probe(*args, **kwargs)
            except Exception as error:
                self.note(where, error)
                return None

        return safe
