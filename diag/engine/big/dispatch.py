"""Layers that compute where they were put: weights held elsewhere come in for a forward and leave.

A block's forward pre-hook fetches what it lacks, its forward hook gives it back. What is there is
kept on a stack, and the model's own forward unwinds it whatever ends it (Ctrl-C in a notebook
runs no hook), so that no weight stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any, NoReturn

import torch
from torch import nn

from diag.engine.big.layout import Slot
from diag.engine.trees import flatten, mapped
from diag.errors import DiagError


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor held where it does not compute; `read` gives its value, on any device."""

    read: Callable[[], torch.Tensor]
    is_buffer: bool = False

    def on(self, device: torch.device) -> torch.Tensor:
        value = self.read().to(device)
        return value if self.is_buffer else nn.Parameter(value, requires_grad=False)


@dataclass(frozen=True, eq=False)
class Needs:
    """What a module's forward needs on `device`: its inputs, and these slots filled."""

    device: torch.device
    slots: Sequence[tuple[Slot, Weight]] = ()


@dataclass(eq=False)
class _Visit:
    needs: Needs
    replaced: list[tuple[Slot, torch.Tensor]] = field(default_factory=list)
    taken: list[Weight] = field(default_factory=list)


@dataclass(eq=False)
class _Loan:
    value: torch.Tensor
    num_users: int = 0


class Shelf:
    """The weights now fetched, each once per device, and for whose forward."""

    def __init__(self) -> None:
        self._visits: list[_Visit] = []
        self._loans: dict[tuple[Weight, torch.device], _Loan] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def enter(self, needs: Needs) -> None:
        """Fill the slots of `needs`; a failure half-way is undone by `leave` or `unwind`."""
        visit = _Visit(needs)
        self._visits.append(visit)
        for slot, weight in needs.slots:
            value = self._take(weight, needs.device)
            visit.taken.append(weight)
            visit.replaced.append((slot, slot.get()))
            slot.set(value)

    def leave(self, needs: Needs) -> None:
        """Undo the last `enter(needs)` and all that was entered after it."""
        for mark in reversed(range(len(self._visits))):
            if self._visits[mark].needs is needs:
                return self.unwind(mark)
        return None

    def unwind(self, mark: int) -> None:
        """Undo every `enter` since there were `mark` of them."""
        while len(self._visits) > mark:
            visit = self._visits.pop()
            for slot, before in reversed(visit.replaced):
                slot.set(before)
            for weight in visit.taken:
                self._give_back(weight, visit.needs.device)

    def _take(self, weight: Weight, device: torch.device) -> torch.Tensor:
        loan = self._loans.get((weight, device))
        if loan is None:
            loan = self._loans[weight, device] = _Loan(weight.on(device))
        loan.num_users += 1
        return loan.value

    def _give_back(self, weight: Weight, device: torch.device) -> None:
        loan = self._loans[weight, device]
        loan.num_users -= 1
        if not loan.num_users:
            del self._loans[weight, device]


# Objects with bound methods, not closures, so that `copy.deepcopy(model)` copies them too.


@dataclass(eq=False)
class _BlockHooks:
    shelf: Shelf
    needs: Needs

    def attach(self, module: nn.Module) -> None:
        # First and last of all hooks: what pruning or weight_norm computes beforehand needs the
        # weights already.
        module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        if self.needs.slots:
            module.register_forward_hook(self._after, always_call=True)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self.needs.slots:
            self.shelf.enter(self.needs)
        return moved(args, self.needs.device), moved(kwargs, self.needs.device)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.shelf.leave(self.needs)


class _ModelForward:
    """The model's own forward: inputs go where it begins, results come back to where they were."""

    def __init__(self, model: nn.Module, shelf: Shelf, needs: Needs) -> None:
        self._forward = model.forward
        self._shelf = shelf
        self._needs = needs
        self._is_running = False
        update_wrapper(self, model.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        origin = _device_in((args, kwargs))
        # A model may call itself. If it does not, what is there was left by a block that was
        # called alone and interrupted.
        was_running, self._is_running = self._is_running, True
        mark = len(self._shelf) if was_running else 0
        self._shelf.unwind(mark)
        try:
            self._shelf.enter(self._needs)
            device = self._needs.device
            output = self._forward(*moved(args, device), **moved(kwargs, device))
        finally:
            self._shelf.unwind(mark)
            self._is_running = was_running
        return output if origin is None else moved(output, origin)


@dataclass(eq=False)
class _RealState:
    """`state_dict` of a module some of whose slots are empty: the values, read for it."""

    weights: Mapping[str, Weight]

    def __call__(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: object
    ) -> None:
        for attribute, weight in self.weights.items():
            if prefix + attribute in state:
                state[prefix + attribute] = weight.read()


def dispatch(
    model: nn.Module,
    start: Needs,
    blocks: Sequence[tuple[nn.Module, Needs]],
    empty: Sequence[tuple[Slot, Weight]],
) -> None:
    """Make `model` fetch what its forwards need.

    Args:
        start: what the model's own forward needs: where its inputs go, and its own weights.
        blocks: the same for modules in it.
        empty: slots that hold no value between forwards, and where it is.
    """
    shelf = Shelf()
    for module, needs in blocks:
        _BlockHooks(shelf, needs).attach(module)
    by_module: dict[nn.Module, dict[str, Weight]] = {}
    for slot, weight in empty:
        by_module.setdefault(slot.module, {})[slot.attribute] = weight
    for module, weights in by_module.items():
        module.register_state_dict_post_hook(_RealState(weights))  # type: ignore[no-untyped-call]
    # Instance attributes: the class, and other models of it, stay as they are.
    model.forward = _ModelForward(model, shelf, start)
    model._apply = _refuse  # type: ignore[method-assign]  # behind to(), cuda(), half() …


def is_dispatched(model: nn.Module) -> bool:
    return isinstance(model.forward, _ModelForward)


def _refuse(*args: object, **kwargs: object) -> NoReturn:
    raise DiagError(
        "dispatched-model",
        "This model is spread over several devices; it cannot be moved or converted as a whole.",
        hint="Pass device_map= and dtype= to load_checkpoint_and_dispatch instead.",
    )


def moved(tree: Any, device: torch.device) -> Any:
    """`tree` with its tensors on `device`; the very same objects where none has to move.

    (A cache that a layer fills in place must stay the caller's.)
    """
    return mapped(tree, lambda x: x.to(device) if isinstance(x, torch.Tensor) else x)


def _device_in(tree: Any) -> torch.device | None:
    tensors = (leaf.value for leaf in flatten(tree) if isinstance(leaf.value, torch.Tensor))
    return next((tensor.device for tensor in tensors), None)
