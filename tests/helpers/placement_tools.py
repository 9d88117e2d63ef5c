"""What the scenarios of placed models among two ranks share.

Every scenario returns what JSON can hold; the test compares. None asserts: a rank that left early
would leave the other waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diag.engine.options import DDPOptions, FSDPOptions
from diag.engine.placement import place
from diag.engine.process import Process
from diag.errors import DiagError
from helpers.placement_models import loss_of, tokens

Scenario = Callable[[Process], Any]
SCENARIOS: list[Scenario] = []
STEPS = 4
ROWS = 2  # a rank's share of a batch
Optimizers = dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


# -- tools --------------------------------------------------------------------------------------


def seeded(kind: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return kind()


def put(
    model: nn.Module,
    process: Process,
    strategy: Any = "ddp",
    ddp: DDPOptions | None = None,
    fsdp: FSDPOptions | None = None,
    precision: Any = "no",
) -> nn.Module:
    place(model, process, strategy, ddp or DDPOptions(), fsdp or FSDPOptions(), precision)
    return model


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def alike(process: Process, tensor: Tensor) -> bool:
    """Whether every rank holds the same."""
    mine = whole(tensor).contiguous()
    everyone = [torch.empty_like(mine) for _ in range(process.world_size)]
    dist.all_gather(everyone, mine)
    return all(torch.equal(one, mine) for one in everyone)


def share(process: Process, batch: Tensor) -> Tensor:
    return batch[process.rank * ROWS : (process.rank + 1) * ROWS]


def distance(model: nn.Module, reference: nn.Module) -> float:
    """The largest relative difference of a weight, in norm."""
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return max(float((whole(p) - q).norm() / q.norm()) for p, q in pairs)


def refusal(function: Callable[[], Any]) -> list[str]:
    """[slug, sentence] of the DiagError `function` raises."""
    try:
        function()
    except DiagError as error:
        return [error.slug, error.what]
    return ["accepted", ""]


@contextmanager
def logged(name: str = "diag.engine.placement") -> Iterator[list[str]]:
    """What is logged in the meantime."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def trained_apart(
    process: Process, model: nn.Module, reference: nn.Module, optimizers: list[Any]
) -> dict[str, Any]:
    """Train `model` on this rank's share and `reference` on the whole batch; how far are they apart?"""
    losses = []
    for step in range(STEPS):
        batch = tokens(ROWS * process.world_size, seed=step)
        mine, exact = loss_of(model, share(process, batch)), loss_of(reference, batch)
        for loss in (mine, exact):
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mean = mine.detach()
        dist.all_reduce(mean)
        losses.append(abs(float(mean) / process.world_size - float(exact)))
    return {"loss": max(losses), "weights": distance(model, reference)}
