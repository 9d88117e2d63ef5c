"""Training while the ranks run out of batches at different times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.algorithms.join import Join, Joinable

from diag.engine.process import Process
from diag.errors import DiagError


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


def _joinable(one: Any) -> Joinable:
    if isinstance(one, Joinable):
        return one
    if not isinstance(one, nn.Module):
        raise DiagError(
            "cannot-join",
            f"join_uneven_inputs takes prepared models, not a {type(one).__name__}.",
        )
    from diag.engine.placement.ddp import ddp_of

    ddp = ddp_of(one)
    if ddp is not None:
        return ddp
    raise DiagError(
        "cannot-join",
        f"join_uneven_inputs needs a model replicated by DDP; {type(one).__name__} is not: a "
        "sharded model needs every rank in every forward.",
        "Give every rank the same number of batches: Engine(even_batches=True), or drop_last=True "
        "in the loader. Or Engine(strategy='ddp').",
    )
