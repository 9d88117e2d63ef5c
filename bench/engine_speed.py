"""What Engine costs: the same training by hand, with Engine and with Accelerate, interleaved.

    python bench/engine_speed.py [--blocks N] [--steps N] [--ranks N] [--step-ms N]
        [--device cpu|cuda] [--markdown FILE]

Two processes' steps differ by a quarter from run to run, so the three ways take turns in one,
block of steps by block, in rotating order, each with a model of its own. A block is compared with
the hand-written one of its round. DDP is torch's DistributedDataParallel, FSDP torch's
fully_shard on every block and the model; the plain loop is loader, forward, backward, AdamW,
scheduler; accumulation has 4 micro-batches and clips the gradients' norm. On the CPU computing is
a device of known speed that needs no core (--step-ms in all a step); on GPUs it is real.

Accelerate is left out where it does not shard (FSDP on the CPU; it trains by DDP there).
Target: Engine's median ratio to hand-written at most 1.02 in every row. Exits 1 on a miss.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

JOB = Path(__file__).resolve().parent / "jobs" / "engine_speed_job.py"
ROWS = [(strategy, loop) for strategy in ("ddp", "fsdp") for loop in ("plain", "accumulation")]
TARGET = 1.02
RESAMPLES = 4000
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds of a way's seconds per step to the hand-written one's, with its 95%
    bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def measure(strategy: str, loop: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the job's ranks; what rank 0 printed.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(options.ranks), "LOCAL_WORLD_SIZE": str(options.ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable, str(JOB), f"--strategy={strategy}", f"--loop={loop}",
        f"--device={options.device}", f"--blocks={options.blocks}", f"--steps={options.steps}",
        f"--step-ms={options.step_ms}",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(options.ranks)
    ]
    try:
        printed = processes[0].communicate(timeout=TIMEOUT_S)[0]
        codes = [process.wait(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"{strategy}, {loop}: ranks ended with {codes}")
    return dict(json.loads(printed.strip().splitlines()[-1]))


def ratio(seconds: list[float], by_hand: list[float]) -> Ratio:
    rounds = np.array(seconds) / np.array(by_hand)
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(rounds, (RESAMPLES, len(rounds))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(rounds)), float(low), float(high))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=40, help="rounds, each with a block a way")
    parser.add_argument("--steps", type=int, default=12, help="per block")
    parser.add_argument("--step-ms", type=float, default=20.0, help="computing in a step, on CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines = [
        "| strategy | loop | by hand | Engine / hand | Accelerate / hand |",
        "|---|---|---|---|---|",
    ]
    missed, notes = [], set()
    for strategy, loop in ROWS:
        said = measure(strategy, loop, options)
        seconds = said["seconds"]
        ours = ratio(seconds["engine"], seconds["hand"])
        peer = "-"
        if "accelerate" in seconds:
            peer = str(ratio(seconds["accelerate"], seconds["hand"]))
        notes |= {f"Accelerate, {strategy}: {why}" for why in said["refused"].values()}
        step = f"{np.median(seconds['hand']) * 1e3:.2f} ms"
        lines.append(f"| {strategy} | {loop} | {step} | {ours} | {peer} |")
        if ours.median > TARGET:
            missed.append(f"{strategy}, {loop}: {ours.median:.3f}")
    heading = f"{describe_machine()}; {options.ranks} ranks on {options.device}"
    text = "\n".join([heading, "", *lines, *(f"\n{note}" for note in sorted(notes))])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    print(f"{'MISS' if missed else 'ok  '} Engine <= {TARGET} of hand-written {'; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
