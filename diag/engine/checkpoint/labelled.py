"""Tells diag's probes, where they run, that a function saves or loads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from diag.probes import current

P = ParamSpec("P")
R = TypeVar("R")


def is_checkpoint(function: Callable[P, R]) -> Callable[P, R]:
    """Label the function's time as a checkpoint's; the step it falls into is flagged."""

    @functools.wraps(function)
    def labelled(*args: P.args, **kwargs: P.kwargs) -> R:
        session = current.session
        if session is None:
            return function(*args, **kwargs)
        with session.checkpoint(function.__name__):
            return function(*args, **kwargs)

    return labelled
