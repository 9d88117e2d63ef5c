"""No rank outlives its launcher, not even one that was killed. First thing a rank does; no torch.

Two nets, because each has a hole: the kernel's parent-death signal is bound to the thread that
started the rank and is lost when a process changes its credentials; a polling thread cannot run
while native code holds the GIL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 1.0


def die_with(launcher_pid: int) -> None:
    """Have this process killed when `launcher_pid`, its parent, is gone; exit now if it already is."""
    _ask_kernel()
    if os.getppid() != launcher_pid:  # it died before the kernel was told
        os._exit(128 + signal.SIGKILL)
    threading.Thread(target=_poll, args=(launcher_pid,), name="diag-guard", daemon=True).start()


def _ask_kernel() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):  # a libc without it: the polling thread remains
        return


def _poll(launcher_pid: int) -> None:
    while os.getppid() == launcher_pid:
        time.sleep(_POLL_S)
    # The rank leads a session of its own: take its loader workers along.
    os.killpg(os.getpgrp(), signal.SIGKILL)
