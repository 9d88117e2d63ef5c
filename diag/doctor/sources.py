"""How a source is asked: by itself, with a time limit, its failure kept as a fact.

A source that may block in a driver, or that must load torch, runs in a child process, which
can be killed; the others run in daemon threads, which can only be left behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.doctor.facts import Missing


class Absent(Exception):
    """The thing asked about is not on this machine."""


class Failed(Exception):
    """The thing is there and answers with an error."""


@dataclass(frozen=True)
class Source:
    """Where one field of `Facts` comes from, and how long it may take."""

    take: Callable[[], object]
    seconds: float


def guarded(take: Callable[[], object]) -> object:
    """What `take` returns, or why it did not."""
    try:
        return take()
    except Absent as error:
        return Missing("absent", str(error))
    except Failed as error:
        return Missing("failed", str(error))
    except subprocess.TimeoutExpired as error:
        return Missing("timeout", f"no answer within {error.timeout:g} s")
    except Exception as error:  # any: one source must never take the others with it
        return Missing("failed", f"{type(error).__name__}: {error}")


def ask_all(sources: Mapping[str, Source]) -> dict[str, object]:
    """Every source's answer, asked at the same time; `Missing` for those past their limit."""
    answers: dict[str, object] = {}

    def ask(name: str, source: Source) -> None:
        answers[name] = guarded(source.take)

    threads = {
        name: threading.Thread(target=ask, args=(name, source), name=f"fact-{name}", daemon=True)
        for name, source in sources.items()
    }
    for thread in threads.values():
        thread.start()
    start = time.monotonic()
    for name, source in sources.items():
        threads[name].join(max(0.0, start + source.seconds - time.monotonic()))
    late = {n: Missing("timeout", f"no answer within {s.seconds:g} s") for n, s in sources.items()}
    return late | dict(answers)


def run_child(name: str, seconds: float, *args: str) -> Any:
    """The JSON value that source `name` prints in a child process of its own.

    Raises:
        subprocess.TimeoutExpired: no answer in time; the child is killed.
        Failed: the child ended without an answer; holds the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "diag.doctor.child", name, *args],
        env={**os.environ, "PYTHONPATH": _python_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failed(f"ended with {done.returncode}: {said}")
    return json.loads(lines[-1])


def _python_path() -> str:
    """The child must find this very package also from a bare checkout that is not installed."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), here])
