"""Signals to the launcher become exceptions, so that the record is completed on every way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The launcher was told to stop while no rank was running."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ignore_signals() -> None:
    """The way out is short: a second Ctrl-C must not tear it. For use inside `interruptible`."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted for SIGINT, SIGTERM and SIGHUP, unless they were ignored (nohup)."""

    def stop(number: int, _frame: FrameType | None) -> None:
        ignore_signals()
        raise Interrupted(number)

    before = {n: signal.getsignal(n) for n in HANDLED}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set by something that is not Python
                signal.signal(number, handler)
