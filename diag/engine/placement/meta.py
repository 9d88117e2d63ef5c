"""First values for what was built on the meta device, without the whole model on any rank.

The model is sharded first; each rank then has memory for its part only. One region at a time (a
block, or a module outside the blocks) is laid out whole on the CPU, its modules write their first
values, and each rank keeps its part. The order, and rank 0's random state, are those of building
the model on the CPU: constructors run children first, so does this; then `_init_weights` of the
nearest module that has one, as `self.apply(self._init_weights)` would. So the values are bit for
bit those of one process that built the model after the same seed, unless a constructor writes
values in a way of its own. Where that shows (a tensor was written in place more often than what
is called here writes it, rehearsed on the meta device) a warning names the tensors; it does not
show for trunc_normal_ and orthogonal_, which do nothing on the meta device, and for `.data`.
Values are drawn in the dtype the tensor has now, and one that modules share has the first one's.
A tensor that nothing writes is an error.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diag.engine import wire
from diag.engine.placement.checks import listing
from diag.engine.placement.initialisers import children_first, custom_initialisers, reset_of
from diag.engine.placement.shards import is_sharded
from diag.engine.placement.sheets import AllBorn, Born, Count, Fill, dressed, laid_out, own_tensors
from diag.engine.process import Process
from diag.engine.torch_private import class_name
from diag.errors import DiagError

_log = logging.getLogger(__name__)

_Region = list[nn.Module]


@dataclass(frozen=True)
class MetaTensors:
    """What a model has on the meta device.

    Attributes:
        to_write: on rank 0 too: by name, how often each was written in place.
        to_receive: rank 0 has their values; it alone has read a checkpoint, say.
    """

    to_write: dict[str, int]
    to_receive: set[Tensor]


def sort_meta(model: nn.Module, process: Process) -> MetaTensors:
    """Find them, before the model is sharded. Collective with several ranks.

    Raises:
        DiagError: rank 0 lacks values that another rank has.
    """
    mine = {name: tensor for name, tensor in _named_tensors(model) if tensor.is_meta}
    everyone = wire.gather_object(process, list(mine)) if process.distributed else [list(mine)]
    on_0 = set(everyone[0])
    for rank, names in enumerate(everyone):
        if lacking := on_0.difference(names):
            raise DiagError(
                "meta-on-rank-0",
                f"Rank {rank} has values of {len(lacking)} tensors that rank 0 has on the meta "
                f"device: {listing(sorted(lacking))}.",
                hint="Read the checkpoint on rank 0, which gives the others theirs.",
            )
    return MetaTensors(
        {name: tensor._version for name, tensor in mine.items() if name in on_0},
        {tensor for name, tensor in mine.items() if name not in on_0},
    )


def memory_for(model: nn.Module, tensor: Tensor, device: torch.device) -> Tensor:
    """Uninitialised memory for a meta tensor of the model.

    It keeps its identity, since others may hold it; but not where weak references to it exist.
    """
    memory = dressed(torch.empty_like(tensor, device=device, requires_grad=False), tensor)
    if not weakref.getweakrefs(tensor):
        swap: Any = torch.utils.swap_tensors
        swap(tensor, memory)
        return tensor
    for module in model.modules():  # an RNN, which learns of it as the attribute is set
        for key, held in own_tensors(module):
            if held is tensor:
                setattr(module, key, memory)
    return memory


def materialize(
    model: nn.Module, process: Process, writes: dict[str, int], blocks: Sequence[nn.Module] = ()
) -> None:
    """Give the tensors named in `writes` memory and their first values. Collective.

    Sharded tensors come to lie on the process's device, plain ones on the CPU.

    Args:
        writes: from `sort_meta`.
        blocks: what may be whole on a rank; without any, the model may.

    Raises:
        DiagError: some of them are written by nothing.
    """
    if not writes:
        return
    born = _allocate(model, process, writes)
    regions = _disjoint(_regions(model, set(blocks)))
    with torch.no_grad(), torch.device("cpu"):
        counted = _count_writes(model, born, regions)
        with _random_state_of_rank_0(process):
            _walk(model, born, regions, Fill)
    _check_filled(born)
    if counted and process.is_main:
        _warn_of_others(born)


def _walk(
    model: nn.Module, born: AllBorn, regions: list[_Region], kind: type[Count] | type[Fill]
) -> None:
    """Have the modules write, one region at a time: first as they are built, then as a whole."""
    holders = {m for m in model.modules() if any(t in born for _, t in own_tensors(m))}
    for region in regions:
        with laid_out(region, born, kind(first=True)):
            _reset(region, holders)
    initialisers = custom_initialisers(model)
    for region in regions if initialisers else ():
        with laid_out(region, born, kind(first=False)):
            for module in region:
                if module in initialisers:
                    _write(partial(initialisers[module], module), module, region)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _allocate(model: nn.Module, process: Process, writes: dict[str, int]) -> AllBorn:
    born: AllBorn = {}
    owners = _owners(model)
    for name, tensor in list(_named_tensors(model)):
        if name in writes:
            device = process.device if is_sharded(tensor) else torch.device("cpu")
            born[memory_for(model, tensor, device)] = Born(name, owners[tensor], writes[name])
    return born


def _owners(model: nn.Module) -> dict[Tensor, nn.Module]:
    """By tensor, the first module that holds it and can reset it, else the first that holds it."""
    owners: dict[Tensor, nn.Module] = {}
    for module in children_first(model):
        for _, tensor in own_tensors(module):
            if tensor not in owners or not reset_of(owners[tensor]):
                owners[tensor] = module
    return owners


def _regions(module: nn.Module, blocks: set[nn.Module]) -> Iterator[_Region]:
    """The model in parts that may be whole on a rank: each its modules, children first.

    A module above a block is a region without its children.
    """
    if blocks.isdisjoint(m for m in module.modules() if m is not module):
        yield list(children_first(module))
        return
    for child in module.children():
        yield from _regions(child, blocks)
    yield [module]


def _disjoint(regions: Iterable[_Region]) -> list[_Region]:
    """Without the second places of modules that are used twice."""
    seen: set[nn.Module] = set()
    found = []
    for region in regions:
        found.append([module for module in dict.fromkeys(region) if module not in seen])
        seen.update(region)
    return [region for region in found if region]


def _reset(region: _Region, holders: set[nn.Module]) -> None:
    within = set(region)
    for module in region:
        reset = reset_of(module)
        if reset is not None and holders & within.intersection(module.modules()):
            _write(reset, module, region)


def _write(initialise: Callable[[], object], module: nn.Module, region: _Region) -> None:
    """Call it; a module above the blocks may write its own tensors only."""
    # Only in a region of one module are there others below it, which are not laid out.
    below = [m for m in module.modules() if m is not module] if len(region) == 1 else []
    beyond = [tensor for m in below for _, tensor in own_tensors(m)]
    versions = [tensor._version for tensor in beyond]
    initialise()
    if [tensor._version for tensor in beyond] != versions:
        raise DiagError(
            "initialiser-writes-blocks",
            f"Initialising {class_name(module)} wrote parameters of the blocks below it, "
            "which are on no rank as a whole.",
            hint="Let each block initialise its own parameters: reset_parameters or _init_weights.",
        )


@contextmanager
def _random_state_of_rank_0(process: Process) -> Iterator[None]:
    """Every rank draws what rank 0 draws; whoever was seeded otherwise goes on as before."""
    own = torch.get_rng_state()
    shared = own.clone()
    if process.distributed:
        wire.broadcast_into(process, shared, 0)
    torch.set_rng_state(shared)
    try:
        yield
    finally:
        if not torch.equal(own, shared):
            torch.set_rng_state(own)


def _check_filled(born: AllBorn) -> None:
    empty = [f"{r.name} ({class_name(r.owner)})" for r in born.values() if not r.filled]
    if empty:
        raise DiagError(
            "nothing-initialises",
            f"Built on the meta device, and written by no reset_parameters or _init_weights: "
            f"{listing(empty)}.",
            hint="Give these modules a reset_parameters() that fills their tensors, or build them "
            "on the CPU (device='cpu' where the tensor is made).",
        )


def _count_writes(model: nn.Module, born: AllBorn, regions: list[_Region]) -> bool:
    """Whether it could be counted how often what is called here writes each tensor."""
    try:
        _walk(model, born, regions, Count)
    except Exception as error:  # the user's code, on a device it may not have been meant for
        _log.debug("First values could not be rehearsed on the meta device: %r", error)
        return False
    return True


def _warn_of_others(born: AllBorn) -> None:
    other = [record.name for record in born.values() if record.repeated_by != record.built_by]
    if other:
        _log.warning(
            "The model's constructor filled %d tensors in a way of its own, beside the "
            "reset_parameters and _init_weights that are repeated here: %s. Their first values "
            "may differ from those of a model built on the CPU.",
            len(other),
            listing(other),
        )
