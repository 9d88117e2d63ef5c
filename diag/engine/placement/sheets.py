"""A part of the model laid out whole on the CPU for its modules to write on, then put away:
each rank keeps what it holds of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diag.engine.placement.shards import fill, full, is_sharded


@dataclass
class Born:
    """A parameter or buffer that was built on the meta device and has memory now.

    Attributes:
        owner: the module whose values count where several share it.
        expected, writes: how often its constructor wrote it in place, and how often it was since.
        filled: whether every element has been written.
    """

    name: str
    owner: nn.Module
    expected: int
    writes: int = 0
    filled: bool = False


AllBorn = dict[Tensor, Born]


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers, by attribute."""
    return [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]


def dressed(value: Tensor, like: Tensor) -> Tensor:
    """`value` as a parameter, if `like` is one."""
    return nn.Parameter(value, like.requires_grad) if isinstance(like, nn.Parameter) else value


@contextmanager
def laid_out(modules: Sequence[nn.Module], born: AllBorn, blank: bool) -> Iterator[None]:
    """Have these modules hold whole tensors; in the end keep what stands in those born.

    Collective where they are sharded.

    Args:
        blank: they hold no values yet. A shared tensor is its owner's then: the others write on
            a sheet that is thrown away, as their constructors did on a tensor that sharing dropped.
    """
    places = [(module, key, tensor) for module in modules for key, tensor in own_tensors(module)]
    sheets: dict[Tensor, tuple[Tensor, int]] = {}
    for module, key, tensor in places:
        if blank and tensor in born and born[tensor].owner is not module:
            setattr(module, key, dressed(torch.empty(tensor.shape, dtype=tensor.dtype), tensor))
            continue
        if tensor not in sheets:
            sheet = _sheet(tensor, tensor in born, blank)
            sheets[tensor] = sheet, sheet._version
        setattr(module, key, sheets[tensor][0])
    try:
        yield
        for module, key, tensor in places:
            counts = tensor in born and (not blank or born[tensor].owner is module)
            if counts and tensor in sheets:
                _keep(born[tensor], tensor, getattr(module, key), *sheets.pop(tensor))
    finally:
        for module, key, tensor in places:
            setattr(module, key, tensor)


def _sheet(tensor: Tensor, is_born: bool, blank: bool) -> Tensor:
    if not is_born:  # what has its values already is not to be written
        return dressed(full(tensor).clone(), tensor)
    nothing: Any = _unwritten(tensor.dtype)
    if is_sharded(tensor):
        whole = torch.full(tensor.shape, nothing, dtype=tensor.dtype) if blank else full(tensor)
        return dressed(whole, tensor)
    return tensor.fill_(nothing) if blank else tensor


def _unwritten(dtype: torch.dtype) -> float:
    """What stands where nothing was written; only NaN is sure to be no value."""
    return float("nan") if dtype.is_floating_point or dtype.is_complex else 0


def _keep(record: Born, tensor: Tensor, now: Tensor, sheet: Tensor, start: int) -> None:
    """Store what was written; `now` stands where `sheet` was laid."""
    replaced = now is not sheet
    record.writes = now._version if replaced else record.writes + now._version - start
    if now.is_floating_point() or now.is_complex():
        record.filled = not bool(now.isnan().any())
    else:
        record.filled |= replaced or now._version > start
    if now is not tensor:
        fill(tensor, now)
