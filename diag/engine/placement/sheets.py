"""A part of the model laid out whole on the CPU for its modules to write on, then put away:
each rank keeps what it holds of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diag.engine.placement.shards import fill, full, is_sharded


@dataclass
class Born:
    """A parameter or buffer that was built on the meta device and has memory now.

    Attributes:
        owner: the module whose values count where several share it.
        built_by, repeated_by: in-place writes by its constructor, and by what is called here.
        filled: whether every element has been written.
    """

    name: str
    owner: nn.Module
    built_by: int
    repeated_by: int = 0
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


class Pass(Protocol):
    """One way through the model: what is written on, and what becomes of it."""

    first: bool  # nothing holds values yet: a shared tensor gets its owner's

    def sheet(self, tensor: Tensor, is_born: bool) -> Tensor: ...

    def keep(self, record: Born, tensor: Tensor, now: Tensor, replaced: bool, writes: int) -> None:
        """`now` stands in place of the sheet: the sheet itself, unless it was replaced."""


@contextmanager
def laid_out(modules: Sequence[nn.Module], born: AllBorn, through: Pass) -> Iterator[None]:
    """Have these modules hold whole tensors; in the end keep what stands in those born.

    In a first pass only its owner writes a shared tensor; the others write on a sheet that is
    thrown away, as their constructors wrote a tensor that sharing dropped.
    """
    places = [(module, key, tensor) for module in modules for key, tensor in own_tensors(module)]
    sheets: dict[Tensor, tuple[Tensor, int]] = {}
    for module, key, tensor in places:
        if through.first and tensor in born and born[tensor].owner is not module:
            setattr(module, key, through.sheet(_on_meta(tensor), True))
            continue
        if tensor not in sheets:
            sheet = through.sheet(tensor, tensor in born)
            sheets[tensor] = sheet, sheet._version
        setattr(module, key, sheets[tensor][0])
    try:
        yield
        for module, key, tensor in places:
            kept = tensor in born and (not through.first or born[tensor].owner is module)
            if kept and tensor in sheets:
                now, (sheet, start) = getattr(module, key), sheets.pop(tensor)
                replaced = now is not sheet
                writes = now._version - (0 if replaced else start)
                through.keep(born[tensor], tensor, now, replaced, writes)
    finally:
        for module, key, tensor in places:
            setattr(module, key, tensor)


class Count:
    """On the meta device again, where nothing is computed: how often is each tensor written?"""

    def __init__(self, first: bool) -> None:
        self.first = first

    def sheet(self, tensor: Tensor, is_born: bool) -> Tensor:
        return _on_meta(tensor)

    def keep(self, record: Born, tensor: Tensor, now: Tensor, replaced: bool, writes: int) -> None:
        record.repeated_by = writes if replaced else record.repeated_by + writes


class Fill:
    """On the CPU; each rank keeps its part."""

    def __init__(self, first: bool) -> None:
        self.first = first

    def sheet(self, tensor: Tensor, is_born: bool) -> Tensor:
        if not is_born:  # what has its values already is not to be written
            return dressed(full(tensor).clone(), tensor)
        nothing: Any = _unwritten(tensor.dtype)
        if is_sharded(tensor) or tensor.is_meta:
            blank = torch.full(tensor.shape, nothing, dtype=tensor.dtype)
            return dressed(blank if self.first else full(tensor), tensor)
        return tensor.fill_(nothing) if self.first else tensor

    def keep(self, record: Born, tensor: Tensor, now: Tensor, replaced: bool, writes: int) -> None:
        if now.is_floating_point() or now.is_complex():
            record.filled = not bool(now.isnan().any())
        else:
            record.filled |= writes > 0
        if now is not tensor:
            fill(tensor, now)


def _on_meta(tensor: Tensor) -> Tensor:
    return dressed(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), tensor)


def _unwritten(dtype: torch.dtype) -> float:
    """What stands where nothing was written; only NaN is sure to be no value."""
    return float("nan") if dtype.is_floating_point or dtype.is_complex else 0
