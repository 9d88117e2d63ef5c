"""Rank target of bench/overhead.py: blocks of instrumented and plain steps in turn, in one process.

Two replicas of one model: the first is only ever trained with the seams in place, the second
only ever with torch as it came. Prints one JSON object on rank 0.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # bench/, for machine.py

import torch
import torch.distributed as dist
from machine import Stolen
from planted_job import SleepingDevice
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diag.probes import ProbeConfig, install
from diag.probes.capture import Capture

BUCKETS, WIDTH = 8, 256
STEP_S = 0.020
FORWARD_SHARE = 0.4  # of a sleeping step


class Net(nn.Module):
    """Eight layers that compute, or that sleep `asleep` seconds a step in all."""

    def __init__(self, asleep: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BUCKETS))
        self.forward_s = asleep * FORWARD_SHARE / BUCKETS
        self.backward_s = asleep * (1 - FORWARD_SHARE) / BUCKETS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.forward_s:
                x = SleepingDevice.apply(x, self.forward_s, self.backward_s)
        return x


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """Batches made beforehand, so that loading costs what handing over costs."""

    def __init__(self, batch: int) -> None:
        self.rows = torch.randn(batch, WIDTH)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows


def sized(device: str) -> tuple[int, float]:
    """(batch, seconds asleep) that make a plain step last STEP_S on this machine, on all ranks."""
    batch, asleep = (4, STEP_S) if device == "sleep" else (256, 0.0)
    for _ in range(3):
        replica = Replica(batch, asleep)
        took = torch.tensor(sorted(replica.step() for _ in range(15))[7])
        dist.all_reduce(took)
        excess = STEP_S / (float(took) / dist.get_world_size())
        if device == "sleep":
            asleep = max(asleep + STEP_S - STEP_S / excess, 0.001)
        else:
            batch = max(int(batch * excess), 4)
    return batch, asleep


class Replica:
    def __init__(self, batch: int, asleep: float) -> None:
        # One layer's gradient fills a bucket.
        cap_mb = WIDTH * WIDTH * 4 / 2**20
        self.model = DistributedDataParallel(Net(asleep), bucket_cap_mb=cap_mb)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        # One row, as often as asked for: the loader's own work stays small.
        self.loader = iter(torch.utils.data.DataLoader(Rows(batch), batch_size=1))

    def step(self) -> float:
        """Train one step; its seconds."""
        began = time.perf_counter()
        x = next(self.loader)
        self.model(x[0]).pow(2).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


class Instruments:
    """Puts the probes' seams in and out, so that the plain replica never meets one."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def off(self) -> None:
        self.capture.seams.remove()

    def on(self) -> None:
        seams, roots = self.capture.seams, self.capture.roots
        seams.install()
        for replica_class in roots.labelled:
            seams.wrap_forward(replica_class)


def main() -> None:
    blocks, steps, device = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    made = sized(device)
    plain = Replica(*made)
    place = Path(tempfile.mkdtemp()) / "rank"
    session = install(ProbeConfig(place, rank, rank, 0, world, 0, "cpu"))
    capture: Capture = session.capture
    probed = Replica(*made)
    for _ in range(20):
        probed.step()
    instruments = Instruments(capture)
    told: list[int] = []
    ending = capture.tracker.on_step

    def note() -> None:
        ending()
        told.append(capture.tracker.ending.probe_ns)

    capture.tracker.on_step = note
    background = -(capture.writer.flush_cost_ns + capture.pulse.cost_ns)
    began = time.perf_counter()
    with_probes, without, stolen = [], [], []
    for _ in range(blocks):
        robbed = Stolen()
        with_probes.append([probed.step() for _ in range(steps)][1:])
        instruments.off()
        plain.step()
        without.append([plain.step() for _ in range(steps)][1:])
        stolen.append(robbed.share())
        instruments.on()
        probed.step()
    wall = time.perf_counter() - began
    background += capture.writer.flush_cost_ns + capture.pulse.cost_ns
    buckets = probed.model._get_ddp_logging_data().get("num_buckets_reduced", BUCKETS)
    failures = dict(session.failures.counts)
    session.finish("script")
    if rank == 0:
        print(
            json.dumps(
                {
                    "with": with_probes, "without": without, "stolen": stolen, "self_ns": told, "buckets": buckets,
                    # Half of the wall clock ran with the probes in place.
                    "background_share": background / 1e9 / (wall / 2), "failures": failures,
                }
            ),
            flush=True,
        )  # fmt: skip
    del plain, probed
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
