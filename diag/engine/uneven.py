"""Ranks that run out of batches at different times: found before one waits for another, or joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable
from torch.optim import Optimizer

from diag.engine import wire
from diag.engine.checkpoint import Stateful
from diag.engine.checkpoint import optimizers as states
from diag.engine.data import PreparedLoader
from diag.engine.placement import ddp_of
from diag.engine.process import Process
from diag.errors import DiagError

_EVEN = "even_batches=True fills the last step up; drop_last=True in the loader leaves it out."


def check_all_have_a_batch(loader: PreparedLoader | None, process: Process) -> None:
    """Refuse to train on a batch of a step in which other ranks have none: it would never end.

    Raises:
        DiagError: `loader` stands at such a batch.
    """
    if loader is None or loader.on_every_rank:
        return
    given = loader.batches_yielded
    raise DiagError(
        "uneven-batches",
        f"Rank {process.rank} trains on batch {given} of its loader, but some ranks have only "
        f"{given - 1}: it would wait for them for ever.",
        f"{_EVEN} With DDP, `with engine.join_uneven_inputs([model]):` trains on all.",
    )


def check_before_forward(model: nn.Module, check: Callable[[nn.Module], None]) -> None:
    """Call `check(model)` before every forward of the model."""

    def before(module: nn.Module, _: Any) -> None:
        check(module)

    model.register_forward_pre_hook(before, prepend=True)  # before FSDP gathers


@contextmanager
def join(process: Process, joinables: Iterable[Any], enable: bool) -> Iterator[None]:
    """A rank that leaves the block answers the others' gradient synchronizations until all have left.

    It adds nothing to them; they are still divided by the number of all ranks. The last rank's
    weights are everyone's afterwards. Every rank must come.

    Args:
        joinables: prepared models, and torch's own Joinables.
        enable: False does nothing.

    Raises:
        DiagError: a model whose synchronization cannot be joined: sharded, or never prepared.
    """
    if not process.distributed or not enable:
        yield
        return
    with Join([_joinable(one) for one in joinables], throw_on_early_termination=False):
        yield


@contextmanager
def even_batches(loaders: Iterable[PreparedLoader], even: bool) -> Iterator[None]:
    """The loaders fill their last step up, or not, in the block."""
    before = [(loader, loader.even_batches) for loader in loaders]
    for loader, _ in before:
        loader.even_batches = even
    try:
        yield
    finally:
        for loader, was in before:
            loader.even_batches = was


def catch_up(
    process: Process, steps: int, optimizers: Sequence[Optimizer], others: Sequence[Stateful]
) -> int:
    """Give ranks that left `join` early the states of one that took every step. Collective.

    torch's Join brings the weights alone: momentum would differ from here on, and the weights
    with it.

    Args:
        steps: how many this rank took.
        others: schedulers and the loss scale: small, and without tensors on a device.

    Returns:
        How many steps were taken.
    """
    taken = [row[0] for row in wire.exchange(process, [steps])]
    most = max(taken)
    if min(taken) == most:
        return most
    source, behind = taken.index(most), steps < most
    for optimizer in optimizers:
        _copy_state(process, optimizer, source, behind)
    small = [[other.state_dict() for other in others]]  # in one: an empty list cannot be sent
    dist.broadcast_object_list(small, source)
    for other, state in zip(others, small[0], strict=True):
        if behind:
            other.load_state_dict(state)
    return most


def _copy_state(process: Process, optimizer: Optimizer, source: int, behind: bool) -> None:
    """Rank `source`'s state for the ranks that are behind."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): str(index) for index, p in enumerate(parameters)}
    outline, tensors = states.capture("", optimizer, names)
    outlines = [outline]
    dist.broadcast_object_list(outlines, source)
    if process.rank != source:  # its own may be without what the last steps brought
        state, tensors = states.prepare("", outlines[0], optimizer, names)
    for path in sorted(tensors):
        wire.broadcast_into(process, tensors[path], source)
    if behind:
        states.load(optimizer, state, names)


def _joinable(one: Any) -> Joinable:
    if isinstance(one, Joinable):
        return one
    ddp = ddp_of(one) if isinstance(one, nn.Module) else None
    if ddp is not None:
        return ddp
    raise DiagError(
        "cannot-join",
        f"join_uneven_inputs takes models that DDP synchronizes, and {type(one).__name__} is none: "
        "a sharded model needs every rank in every forward.",
        f"{_EVEN} Or Engine(strategy='ddp').",
    )
