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

import torch
import torch.distributed as dist
from planted_job import SleepingDevice
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diag.probes import ProbeConfig, install
from diag.probes.capture import Capture

BUCKETS, WIDTH = 8, 256
FORWARD_S, BACKWARD_S = 0.007, 0.011


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BUCKETS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = SleepingDevice.apply(layer(x), FORWARD_S / BUCKETS, BACKWARD_S / BUCKETS)
        return x


class Replica:
    def __init__(self) -> None:
        # One layer's gradient fills a bucket.
        cap_mb = WIDTH * WIDTH * 4 / 2**20
        self.model = DistributedDataParallel(Net(), bucket_cap_mb=cap_mb)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        data = torch.utils.data.TensorDataset(torch.randn(200_000, WIDTH))
        self.loader = iter(torch.utils.data.DataLoader(data, batch_size=4))

    def step(self) -> float:
        """Train one step; its seconds."""
        began = time.perf_counter()
        (x,) = next(self.loader)
        self.model(x).pow(2).mean().backward()
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
    blocks, steps = int(sys.argv[1]), int(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    plain = Replica()
    place = Path(tempfile.mkdtemp()) / "rank"
    session = install(ProbeConfig(place, rank, rank, 0, world, 0, "cpu"))
    capture: Capture = session.capture
    probed = Replica()
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
    with_probes, without = [], []
    for _ in range(blocks):
        with_probes.append([probed.step() for _ in range(steps)][1:])
        instruments.off()
        plain.step()
        without.append([plain.step() for _ in range(steps)][1:])
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
                    "with": with_probes, "without": without, "self_ns": told, "buckets": buckets,
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
