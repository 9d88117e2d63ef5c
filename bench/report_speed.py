"""How long explaining takes, as whole processes: wall time from start to exit, and peak memory.

    python bench/report_speed.py [--repeat N] [--keep DIRECTORY]

Writes two synthetic records, one of 64 ranks x 2,000 steps x 8 collectives and one of the
demo's size, each beside a 1-rank baseline, and times `diag scaling-report` on them and
`diag --help`. Every figure is of a fresh process; the first, with cold caches, is thrown away.
Exits 1 if the median misses its target.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine

DIAG = (sys.executable, "-m", "diag")
TESTS = Path(__file__).resolve().parents[1] / "tests"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A command and what it may take."""

    what: str
    command: tuple[str, ...]
    seconds: float
    peak_bytes: int | None = None
    ranks: int | None = None  # that its JSON must hold


@dataclass(frozen=True)
class Measured:
    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# Written by a child: a process that had held the records would lend its peak to those it starts.
_WRITE = """
import sys
from pathlib import Path
import numpy as np
from helpers.records import released_together, write_run
store, name, ranks, steps, collectives = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
local = np.random.default_rng(1).lognormal(15, 0.1, (ranks, steps, 7)).astype(np.int64)
local[ranks // 2, :, 4] += 10**7  # one slow rank, so that there is something to explain
phases = released_together(local, 10**6 if ranks > 1 else 0)
write_run(store, phases, name=name, num_collectives=collectives if ranks > 1 else 0)
"""


def write_record(store: Path, name: str, ranks: int, steps: int, collectives: int) -> None:
    """A run directory in `store`, if it is not there from an earlier time."""
    if (store / name).exists():
        return
    arguments = (str(store), name, *map(str, (ranks, steps, collectives)))
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    subprocess.run([sys.executable, "-c", _WRITE, *arguments], check=True, env=environment)


def measure_once(case: Case) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one process.

    Raises:
        SystemExit: the command failed, or explained another run than the one meant.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(case.command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{case.what}: exit code {process.returncode}")
    if case.ranks is not None and json.loads(text)["run"]["world_size"] != case.ranks:
        raise SystemExit(f"{case.what}: explained another run")
    return seconds, usage.ru_maxrss * 1024


def measure(case: Case, repeat: int) -> Measured:
    measure_once(case)
    runs = [measure_once(case) for _ in range(repeat)]
    return Measured(tuple(s for s, _ in runs), max(peak for _, peak in runs))


def met(case: Case, measured: Measured) -> bool:
    fits = case.peak_bytes is None or measured.peak_bytes <= case.peak_bytes
    return measured.median <= case.seconds and fits


def cases(store: Path) -> tuple[Case, ...]:
    def report(name: str) -> tuple[str, ...]:
        runs = (name, "--baseline", f"{name}-base", "--runs-dir", str(store), "--json")
        return (*DIAG, "scaling-report", *runs)

    return (
        Case("64 ranks x 2,000 steps x 8 collectives", report("big"), 5.0, GIB, 64),
        Case("2 ranks x 150 steps (the demo's size)", report("demo"), 2.0, None, 2),
        Case("diag --help", (*DIAG, "--help"), 0.3),
    )


def table(rows: Sequence[tuple[Case, Measured]]) -> str:
    lines = [
        "| what | median s | range s | target s | peak MiB | target MiB | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for case, measured in rows:
        limit = "" if case.peak_bytes is None else f"{case.peak_bytes / 2**20:,.0f}"
        spread = f"{min(measured.seconds):.2f} to {max(measured.seconds):.2f}"
        lines.append(
            f"| {case.what} | {measured.median:.2f} | {spread} | {case.seconds:g} | "
            f"{measured.peak_bytes / 2**20:,.0f} | {limit} | "
            f"{'met' if met(case, measured) else 'MISSED'} |"
        )
    return "\n".join(lines)


def bench(store: Path, repeat: int) -> int:
    write_record(store, "big", 64, 2_000, 8)
    write_record(store, "big-base", 1, 500, 0)
    write_record(store, "demo", 2, 150, 4)
    write_record(store, "demo-base", 1, 60, 0)
    rows = [(case, measure(case, repeat)) for case in cases(store)]
    load = os.getloadavg()[0]
    print(f"{describe_machine()}; load {load:.1f}; median of {repeat} processes\n")
    print(table(rows))
    return 0 if all(met(case, measured) for case, measured in rows) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the records here and use them again")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        return bench(arguments.keep, arguments.repeat)
    with tempfile.TemporaryDirectory(prefix="diag-report-speed-") as directory:
        return bench(Path(directory), arguments.repeat)


if __name__ == "__main__":
    sys.exit(main())
