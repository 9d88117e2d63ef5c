"""Is training on N ranks the training of one process? Weights compared, case by case.

    python bench/parity.py [--ranks 2 3 4] [--cells …] [--no-accelerate] [--markdown FILE]

One process against N gloo ranks, with DDP and FSDP2, SGD with momentum and AdamW, through the
Engine; beside it Accelerate, where it runs. Each number is the largest relative deviation
‖w − w₁‖ / ‖w₁‖ of any tensor after two epochs. Targets: float64 at most 1e-10; float32 and bf16 at
most 3 times what one process deviates by when it cuts its batches into the same N chunks; and no
case that Accelerate gets right and the Engine does not. Exits 1 on a miss.

One process can divide each chunk's loss beforehand or, as ranks do, the gradients afterwards.
Beforehand, with N not a power of two, the values it rounds to bf16 are those of the whole batch
and its errors are no independent ones: the larger of the two deviations is the measure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import describe_machine

JOB = Path(__file__).resolve().parent / "jobs" / "parity_job.py"
CELLS = (
    "plain",
    "accumulation",
    "clipping",
    "uneven last batch",
    "token-weighted",
    "scheduler",
    "BatchNorm in eval",
)
STRATEGIES, OPTIMIZERS = ("ddp", "fsdp"), ("SGD", "AdamW")
PRECISIONS = ("float64", "float32", "bf16")
EXACT = 1e-10
TIMES_CHUNKED = 3.0
Row = dict[str, Any]
Key = tuple[str, ...]


def cases(cells: list[str], strategies: tuple[str, ...]) -> list[dict[str, str]]:
    names = ("strategy", "optimizer", "cell", "precision")
    combined = itertools.product(strategies, OPTIMIZERS, cells, PRECISIONS)
    return [dict(zip(names, values, strict=True)) for values in combined]


def run(framework: str, ranks: int, wanted: list[dict[str, str]], timeout: float) -> list[Row]:
    """What rank 0 measured; raises if a rank failed or the time was up."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "cases.json"), Path(folder, "result.json")
        given.write_text(json.dumps(wanted))
        environment = os.environ | {
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
            "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        processes = [
            subprocess.Popen(
                [sys.executable, str(JOB), framework, str(given), str(result)],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]
        try:
            codes = [process.wait(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit(f"{framework} on {ranks} ranks failed: exit codes {codes}")
        return list(json.loads(result.read_text()))


def is_right(row: Row) -> bool:
    if row["precision"] == "float64":
        return bool(row["deviation"] <= EXACT)
    return bool(row["deviation"] <= TIMES_CHUNKED * row["chunked"])


def table(rows: list[Row]) -> str:
    """One line per framework, strategy and cell: the worst over ranks and optimizers."""
    groups: defaultdict[Key, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["framework"], row["strategy"], row["cell"]][row["precision"]].append(row)
    lines = [
        "| cell | by | float64 | float32 ÷ chunks | bf16 ÷ chunks |",
        "|---|---|---:|---:|---:|",
    ]
    order = sorted(groups, key=lambda key: (CELLS.index(key[2]), key[0] != "engine", key[1]))
    for framework, strategy, cell in order:
        by = groups[framework, strategy, cell]
        who = f"{'Engine' if framework == 'engine' else 'Accelerate'} {strategy.upper()}"
        cells = [cell_text(by[precision]) for precision in PRECISIONS]
        lines.append(f"| {cell} | {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell_text(rows: list[Row]) -> str:
    """The worst of the rows, bold if one is wrong."""
    exact = rows[0]["precision"] == "float64"
    worst = max(row["deviation"] if exact else row["deviation"] / row["chunked"] for row in rows)
    text = f"{worst:.1e}" if exact else f"{worst:.2f}" if worst < 1000 else f"{worst:.0e}"
    return text if all(map(is_right, rows)) else f"**{text}**"


def beaten(rows: list[Row]) -> list[str]:
    """Cases that Accelerate gets right and the Engine does not, by any strategy."""

    def name(row: Row) -> Key:
        return row["optimizer"], row["cell"], row["precision"], str(row["ranks"]), row["strategy"]

    theirs = {name(row) for row in rows if row["framework"] == "accelerate" and is_right(row)}
    ours = {name(row) for row in rows if row["framework"] == "engine" and not is_right(row)}
    return [" ".join(key) for key in sorted(theirs & ours)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--no-accelerate", action="store_true")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per framework and N")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for ranks in options.ranks:
        rows += run("engine", ranks, cases(options.cells, STRATEGIES), options.timeout)
        if not options.no_accelerate:  # it shards on GPUs only: on the CPU it would train DDP
            rows += run("accelerate", ranks, cases(options.cells, ("ddp",)), options.timeout)
    ours = [row for row in rows if row["framework"] == "engine"]
    exact = [row for row in ours if row["precision"] == "float64"]
    rounded = [row for row in ours if row["precision"] != "float64"]
    text = f"{describe_machine()}; {', '.join(map(str, options.ranks))} gloo ranks\n\n{table(rows)}"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    checks = {
        f"float64 within {EXACT:g} of one process ({len(exact)} cases)": all(map(is_right, exact)),
        f"float32 and bf16 within {TIMES_CHUNKED:g}x of one process in chunks "
        f"({len(rounded)} cases)": all(map(is_right, rounded)),
        "no case that Accelerate gets right and the Engine does not": not beaten(rows),
    }
    for what, ok in checks.items():
        print(f"{'ok  ' if ok else 'MISS'} {what}")
    for row in ours:
        if not is_right(row):
            print("     missed:", {name: row[name] for name in row if name != "framework"})
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
