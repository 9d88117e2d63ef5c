"""A model seen as what must move: its tensors, who holds them, and the blocks never split."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
# Their forwards take the weights of modules inside them without calling those.
_ALWAYS_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Slot:
    """An attribute of a module that holds a tensor."""

    module: nn.Module
    attribute: str

    def get(self) -> torch.Tensor:
        value = getattr(self.module, self.attribute)
        assert isinstance(value, torch.Tensor)
        return value

    def set(self, value: torch.Tensor) -> None:
        # Not through `_parameters`: an LSTM, for one, keeps a list of its weights in step.
        setattr(self.module, self.attribute, value)

    @property
    def key(self) -> tuple[int, str]:
        return id(self.module), self.attribute


@dataclass(frozen=True)
class ModelTensor:
    """A parameter or buffer, once, however many names it has.

    Attributes:
        names: every name it goes by; several when it is tied. The first stands for it.
        slots: where it is held.
        tensor: itself, on the meta device if it has no value yet.
        is_buffer: no parameter.
        is_saved: part of the state dict (every parameter, and the persistent buffers).
    """

    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    tensor: torch.Tensor
    is_buffer: bool
    is_saved: bool

    @property
    def name(self) -> str:
        return self.names[0]

    def dtype_as(self, dtype: torch.dtype | None) -> torch.dtype:
        """Its type when floating-point weights are wanted as `dtype`; None leaves it."""
        if dtype is None or not self.is_saved or not self.tensor.is_floating_point():
            return self.tensor.dtype
        return dtype

    def bytes_as(self, dtype: torch.dtype | None) -> int:
        return self.tensor.numel() * self.dtype_as(dtype).itemsize


def tensors_of(model: nn.Module) -> list[ModelTensor]:
    """Every parameter and buffer of `model`, in its order of registration."""
    saved = model.state_dict(keep_vars=True).keys()
    found: dict[int, tuple[torch.Tensor, bool, dict[str, Slot]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor, is_buffer in own_tensors(module):
            name = f"{prefix}.{attribute}" if prefix else attribute
            entry = found.setdefault(id(tensor), (tensor, is_buffer, {}))
            entry[2][name] = Slot(module, attribute)
    return [
        ModelTensor(
            names=tuple(slots),
            slots=tuple({slot.key: slot for slot in slots.values()}.values()),
            tensor=tensor,
            is_buffer=is_buffer,
            is_saved=any(name in saved for name in slots),
        )
        for tensor, is_buffer, slots in found.values()
    ]


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The module's own parameters and buffers, not its children's: attribute, tensor, is a buffer."""
    for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
        yield name, param, False
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        yield name, buffer, True


@dataclass(frozen=True)
class Site:
    """A module at whose forward weights must be there: all of a block's, else its own alone.

    Attributes:
        name: its name in the model.
        is_block: what it contains is fetched with it and never split.
        within: the sites whose forward runs around its own; they hold their weights meanwhile.
    """

    name: str
    module: nn.Module
    is_block: bool
    within: tuple[Site, ...] = ()

    def slots(self) -> list[tuple[str, Slot]]:
        """The attributes that hold its tensors, with their names in the model."""
        inside = self.module.named_modules(prefix=self.name)
        return [
            (f"{path}.{attribute}" if path else attribute, Slot(module, attribute))
            for path, module in (inside if self.is_block else [(self.name, self.module)])
            for attribute, _, _ in own_tensors(module)
        ]


def sites_of(model: nn.Module, whole: Collection[str] | None) -> list[Site]:
    """The sites of `model` in its order of registration.

    Args:
        whole: class names of blocks never to be split. None: what `_no_split_modules` of the
            model or of modules in it name, else the elements of its outermost lists of modules;
            a residual connection inside them would meet tensors on two devices.
    """
    if whole is None:
        declared = (getattr(m, "_no_split_modules", None) or () for m in model.modules())
        whole = {name for names in declared for name in names} or None
    return list(_sites(model, "", whole, (), False, set()))


def _sites(
    module: nn.Module,
    name: str,
    whole: Collection[str] | None,
    within: tuple[Site, ...],
    listed: bool,
    seen: set[nn.Module],
) -> Iterator[Site]:
    if module in seen:
        return
    seen.add(module)
    children = list(module.named_children())
    stays_whole = listed if whole is None else type(module).__name__ in whole
    is_block = stays_whole or isinstance(module, _ALWAYS_WHOLE) or not children
    site = Site(name, module, is_block, within)
    has_own = any(True for _ in own_tensors(module))
    if site.is_block:
        if any(True for _ in (*module.parameters(), *module.buffers())):
            yield site
        return
    if has_own:
        yield site
        within = (*within, site)
    # The model itself is no list of its layers' equals, nor is a list of one.
    listing = isinstance(module, _CONTAINERS) and name != "" and len(children) > 1
    for child_name, child in children:
        child_path = f"{name}.{child_name}" if name else child_name
        yield from _sites(child, child_path, whole, within, listing, seen)
