"""A small training that uses every kind of part and every generator, so that a resume that
forgets one of them computes other bits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from diag.engine.checkpoint import Parts
from diag.engine.process import Process

SAMPLES, BATCH = 48, 3


class Net(nn.Module):
    """Odd sizes (shards of unequal length), tied and frozen and unused weights, buffers, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.drop = nn.Dropout(0.4)
        self.last = nn.Linear(7, 5, bias=False)
        self.tied = nn.Linear(7, 5, bias=False)
        self.tied.weight = self.last.weight
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(self.norm(self.first(self.frozen(x))))
        return self.last(hidden) + self.tied(hidden)


class Loader:
    """The position in a shuffled epoch, which a resume takes up in its middle."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0
        draw = torch.Generator().manual_seed(1)
        self.data = torch.randn(SAMPLES, 5, generator=draw)

    def batches(self) -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))
            rows = order.split(BATCH)[self.rank :: self.world_size]
            while self.position < len(rows):
                self.position += 1
                yield self.data[rows[self.position - 1]]
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Seen:
    """A user's object whose state is another on each rank."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.noise = np.zeros(2, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.noise = list(state["losses"]), state["noise"]


class Training:
    """One rank's whole training.

    Args:
        strategy: "ddp", "fsdp" or "none".
        seed: of the generators after building, other on each rank.
    """

    def __init__(self, process: Process, strategy: str, seed: int = 0) -> None:
        torch.manual_seed(3)
        self.process, self.strategy = process, strategy
        self.model = Net()
        self.average = Net()  # as an average of weights would be kept: not placed
        self.temperature = nn.Parameter(torch.tensor([1.0, 2.0]))
        place(self.model, process, strategy)
        groups = [
            {"params": list(self.model.parameters()), "weight_decay": 0.1},
            {"params": [self.temperature], "lr": 1e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=30)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        self.loader = Loader(process.rank, process.world_size)
        self.source = self.loader.batches()
        self.seen = Seen()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        for start in (random.seed, np.random.seed, torch.manual_seed):
            start(1000 * seed + self.process.rank)

    @property
    def parts(self) -> Parts:
        return Parts(
            models=[self.model],
            optimizers=[self.optimizer],
            schedulers=[self.schedule],
            scaler=self.scaler,
            loaders=[self.loader],
            custom=[self.seen, self.average],
        )

    def train(self, steps: int) -> list[str]:
        """The losses, as exact hexadecimal floats."""
        losses = []
        for _ in range(steps):
            noise = np.random.rand(2).astype(np.float32)
            x = next(self.source) + random.random() + float(noise.sum())
            loss = (self.model(x) * self.temperature.sum()).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.scaler.scale(loss.detach())  # without gradients the scaler's own count moves
            self.scaler.load_state_dict(_grown(self.scaler.state_dict()))
            self.seen.losses.append(loss.item())
            self.seen.noise = noise
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.data.lerp_(whole(now.detach()), 0.1)
            losses.append(loss.item().hex())
        return losses

    def digest(self, local: bool = True) -> dict[str, str]:
        """A digest of everything, by name. Collective if sharded.

        Args:
            local: with what belongs to this rank alone: buffers, generators, registered objects.
        """
        found: dict[str, Any] = {
            n: whole(p.detach()) for n, p in self.model.named_parameters(remove_duplicate=False)
        }
        packed = self.optimizer.state_dict()
        for index, state in packed["state"].items():
            found |= {f"state {index} {n}": whole(value) for n, value in state.items()}
        found["groups"] = repr(packed["param_groups"])
        found["temperature"] = self.temperature.detach()
        found["schedule"] = repr(sorted(self.schedule.state_dict().items()))
        found["scaler"] = repr(self.scaler.state_dict())
        found["average"] = torch.cat([p.detach().flatten() for p in self.average.parameters()])
        found["loader"] = repr(self.loader.state_dict())
        if local:
            found |= {f"buffer {n}": b for n, b in self.model.named_buffers()}
            found["torch"] = torch.get_rng_state()
            found["python"] = repr(random.getstate())
            found["numpy"] = repr(np.random.get_state()[1].tolist())
            found["seen"] = repr((self.seen.losses, self.seen.noise.tolist()))
        return {name: _digest(value) for name, value in found.items()}


def place(model: nn.Module, process: Process, strategy: str) -> None:
    if strategy == "ddp":
        replicate(model, find_unused_parameters=True)
    if strategy == "fsdp":
        mesh = init_device_mesh("cpu", (process.world_size,))
        fully_shard(model.first, mesh=mesh)
        fully_shard(model, mesh=mesh)


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _grown(state: dict[str, Any]) -> dict[str, Any]:
    tracker = state["_growth_tracker"] + 1
    return state | {"_growth_tracker": tracker % 2, "scale": state["scale"] * (1 + tracker // 2)}


def _digest(value: Any) -> str:
    raw = value.encode() if isinstance(value, str) else value.contiguous().numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]
