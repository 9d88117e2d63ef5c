"""For every test: nothing may be left behind, in the environment, the threads or the processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Started once per process by the standard library or torch, and meant to stay.
_RESIDENT_THREADS = ("asyncio_", "pymp-", "QueueFeederThread")
_RESIDENT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# pytest's own, and what importing a library sets once for the rest of the process.
_FOREIGN_VARIABLES = ("PYTEST_", "KMP_", "TORCHINDUCTOR_", "HF_", "TOKENIZERS_", "CUDA_MODULE_")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 3.0

# On a busy machine drawing examples is slow; that is no fault of what is tested.
settings.register_profile("diag", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("diag")
# A shell that starts the suite in the background has it ignore Ctrl-C, and what it starts too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that changed the environment, the working directory or a signal handler, or
    that left a thread or a child process running."""
    environ, folder = _environ(), Path.cwd()
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    threads, children = _threads(), _children()
    yield
    complaints = [
        *_changed_environ(environ),
        *_changed_folder(folder),
        *(
            f"the handler of {number.name} was changed"
            for number, handler in zip(_SIGNALS, handlers, strict=True)
            if signal.getsignal(number) != handler
        ),
        *_still_there(lambda: _threads() - threads, "thread"),
        *_still_there(lambda: _children() - children, "process"),
    ]
    assert not complaints, "; ".join(complaints)


def _environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_VARIABLES)}


def _changed_environ(before: dict[str, str]) -> list[str]:
    after = _environ()
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    for name in names:  # the next test must not suffer
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    return [f"environment changed: {', '.join(names)}"] if names else []


def _changed_folder(before: Path) -> list[str]:
    try:
        after = Path.cwd()
    except FileNotFoundError:
        after = Path("a deleted directory")
    if after == before:
        return []
    os.chdir(before)
    return [f"the working directory became {after}"]


def _threads() -> set[str]:
    return {
        f"{thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not thread.name.startswith(_RESIDENT_THREADS)
    }


def _children() -> set[str]:
    return {text for child in psutil.Process().children() if (text := _describe(child))}


def _describe(child: psutil.Process) -> str:
    try:
        command = " ".join(child.cmdline())
        if child.status() == psutil.STATUS_ZOMBIE or any(r in command for r in _RESIDENT_PROCESSES):
            return ""
        return f"{child.pid} {command[:200]}"
    except psutil.NoSuchProcess:
        return ""


def _still_there(find: Callable[[], set[str]], kind: str) -> list[str]:
    # Something on its way out is no leak.
    deadline = time.monotonic() + _PATIENCE_S
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"{kind} left: {one}" for one in sorted(left)]
