"""Start a few real gloo ranks of a scenario module, with a hard timeout, and collect what they say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_ranks(
    module: str, world_size: int, directory: Path, *args: str, timeout: float = 100.0
) -> list[Any]:
    """Run `python -m module directory args…` as ranks; the JSON each left in rank<r>.json.

    Raises:
        AssertionError: a rank failed or the time was up, with every rank's output.
    """
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(directory), *args],
            env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(world_size)
    ]
    outputs = []
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return [json.loads((directory / f"rank{r}.json").read_text()) for r in range(world_size)]


def say(directory: Path, rank: int, value: Any) -> None:
    """Leave this rank's answer for `run_ranks`."""
    (directory / f"rank{rank}.json").write_text(json.dumps(value))
