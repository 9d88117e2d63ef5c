"""Start `diag run`, or a single worker without elastic, in a subprocess with a hard timeout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.launch.environ import WorkerConfig

# Variables of the surrounding shell that would change what a rank sees.
_FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DIAG_RUNS_DIR")


def clean_environ(**extra: str) -> dict[str, str]:
    """This process's environment without torchrun's variables, and with `extra`."""
    return {k: v for k, v in os.environ.items() if k not in _FOREIGN} | extra


@dataclass(frozen=True)
class Finished:
    """What a process left behind."""

    code: int
    out: str
    err: str


def _run(command: list[str], cwd: Path, env: Mapping[str, str], timeout: float) -> Finished:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks die with their launcher
        process.communicate()
        raise
    return Finished(process.returncode, out, err)


def run_python(*words: str, cwd: Path, timeout: float = 30, **env: str) -> Finished:
    """`python *words`."""
    return _run([sys.executable, "-u", *words], cwd, clean_environ(**env), timeout)


def run_diag(*words: str, cwd: Path, timeout: float = 100, **env: str) -> Finished:
    """`diag *words`."""
    return _run([sys.executable, "-m", "diag", *words], cwd, clean_environ(**env), timeout)


def run_worker(
    *words: str, cwd: Path, module: bool = False, timeout: float = 60, **env: str
) -> Finished:
    """One rank of one, as elastic would start it, with nothing installed in it."""
    config = WorkerConfig(
        launcher_pid=os.getpid(),
        run_dir=str(cwd),
        device="cpu",
        module=module,
        probes=False,
        guard=False,
    )
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
        "WORLD_SIZE": "1",
        **config.to_env(),
        **env,
    }
    command = [sys.executable, "-u", "-P", "-m", "diag.launch.worker", *words]
    return _run(command, cwd, clean_environ(**variables), timeout)


def run_json(run_dir: Path) -> dict[str, Any]:
    """The launcher's facts of a run."""
    facts: dict[str, Any] = json.loads((run_dir / "run.json").read_text())
    return facts


@contextmanager
def started_diag(*words: str, cwd: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`diag *words` in the background, its output in cwd/{out,err}; killed at the end."""
    with (cwd / "out").open("wb") as out, (cwd / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "diag", *words],
            cwd=cwd,
            env=clean_environ(**env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait_until(condition: Any, timeout: float, what: str) -> float:
    """Poll `condition` until it holds; the seconds it took.

    Raises:
        AssertionError: it did not within `timeout` seconds.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout, f"not within {timeout} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def is_alive(pid: int) -> bool:
    """Does process `pid` run? A zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
