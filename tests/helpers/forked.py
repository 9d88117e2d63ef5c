"""Ranks forked from one process that has imported torch already: real processes at 0.1 s apiece.

Only for a helper process that has computed nothing yet: torch's threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  # else the first optimizer of every child imports it, 1.5 s each

from helpers.ranks import free_port

Target = Callable[[int, Path], Any]


def fork(run: Callable[[], object], environ: Mapping[str, str]) -> int:
    """Start a child that runs `run` and nothing else; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environ)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no teardown: a live DDP makes torch's own abort now and then


def wait(pid: int, deadline: float) -> int:
    """The child's exit code (negative: its signal). Past the deadline it is killed."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"child {pid} did not end in time")


def start_ranks(target: Target, world_size: int, directory: Path, timeout: float) -> list[int]:
    """`target(rank, directory)` as ranks of one job; their exit codes. Each leaves its answer."""
    directory.mkdir(parents=True, exist_ok=True)
    port = str(free_port())

    def run(rank: int) -> None:
        answer = target(rank, directory)
        (directory / f"answer{rank}.json").write_text(json.dumps(answer))

    pids = []
    for rank in range(world_size):
        environ = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        pids.append(fork(partial(run, rank), environ))
    deadline = time.monotonic() + timeout
    return [wait(pid, deadline) for pid in pids]


def run_forked(
    target: Target, world_size: int, directory: Path, timeout: float = 60.0
) -> list[Any]:
    """What `target(rank, directory)` returned on each rank, through JSON.

    Raises:
        RuntimeError: a rank failed.
        TimeoutError: a rank did not end in time.
    """
    codes = start_ranks(target, world_size, directory, timeout)
    if any(codes):
        raise RuntimeError(f"{target.__name__}: the ranks exited with {codes}")
    answers = [directory / f"answer{rank}.json" for rank in range(world_size)]
    return [json.loads(answer.read_text()) for answer in answers]
