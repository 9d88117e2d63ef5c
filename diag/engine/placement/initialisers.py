"""How a module writes first values into its own tensors, found by the names everyone uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_RESETS = ("reset_parameters", "_reset_parameters")  # the second: nn.MultiheadAttention
_CUSTOM = "_init_weights"  # of a whole model, called with each of its modules

Initialiser = Callable[[nn.Module], object]


def children_first(module: nn.Module) -> Iterator[nn.Module]:
    """The order of `Module.apply`, and that in which constructors end."""
    for child in module.children():
        yield from children_first(child)
    yield module


def reset_of(module: nn.Module) -> Callable[[], object] | None:
    """The method that its constructor fills its tensors by, if it can be called again."""
    found = (getattr(module, name, None) for name in _RESETS)
    return next((method for method in found if _takes(method, 0)), None)


def custom_initialisers(model: nn.Module) -> dict[nn.Module, Initialiser]:
    """By module, `_init_weights` of the nearest module around it that has one."""
    nearest: dict[nn.Module, Initialiser] = {}

    def visit(module: nn.Module, inherited: Initialiser | None) -> None:
        own = getattr(module, _CUSTOM, None)
        initialiser = own if _takes(own, 1) else inherited
        if initialiser is not None:
            nearest[module] = initialiser
        for child in module.children():
            visit(child, initialiser)

    visit(model, None)
    return nearest


def _takes(method: Any, count: int) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True
