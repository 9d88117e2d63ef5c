"""What a checkpoint is made of, by name, and whether a saved one fits what is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from diag.errors import DiagError


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say what it remembers and be reminded of it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Parts:
    """Everything to save or to load, in the order in which it was prepared.

    Attributes:
        models: as prepared, sharded or not.
        optimizers: torch's own objects, or what delegates `state_dict`, `load_state_dict` and
            `param_groups` to one.
        scaler: a GradScaler; None without one.
        loaders: whatever tells its position by `state_dict`.
        custom: the user's registered objects. A module or optimizer among them is stored as one:
            once for the whole job, whatever the number of ranks.
    """

    models: Sequence[nn.Module] = ()
    optimizers: Sequence[Optimizer] = ()
    schedulers: Sequence[Stateful] = ()
    scaler: Stateful | None = None
    loaders: Sequence[Stateful] = ()
    custom: Sequence[Stateful] = ()

    def by_name(self) -> dict[str, Any]:
        """Every part: `model.0`, `optimizer.0`, …, `scaler`."""
        named = {
            f"{kind}.{index}": part
            for kind, parts in (
                ("model", self.models),
                ("optimizer", self.optimizers),
                ("scheduler", self.schedulers),
                ("loader", self.loaders),
                ("custom", self.custom),
            )
            for index, part in enumerate(parts)
        }
        return named if self.scaler is None else named | {"scaler": self.scaler}


def modules_of(named: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The modules among `Parts.by_name()`."""
    return {name: part for name, part in named.items() if _is_module(name, part)}


def optimizers_of(named: Mapping[str, Any]) -> dict[str, Optimizer]:
    """The optimizers among `Parts.by_name()`."""
    return {name: part for name, part in named.items() if _is_optimizer(name, part)}


def plain_of(named: Mapping[str, Any]) -> dict[str, Stateful]:
    """What is neither module nor optimizer among `Parts.by_name()`."""
    return {
        name: part
        for name, part in named.items()
        if not _is_module(name, part) and not _is_optimizer(name, part)
    }


def _is_module(name: str, part: object) -> bool:
    return name.startswith("model.") or isinstance(part, nn.Module)


def _is_optimizer(name: str, part: object) -> bool:
    # A wrapper of an optimizer need not be one.
    return name.startswith("optimizer.") or isinstance(part, Optimizer)


def check_stateful(objects: Sequence[object]) -> None:
    """Refuse what cannot be registered for checkpointing.

    Raises:
        DiagError: some have no `state_dict` or no `load_state_dict`; it names them.
    """
    without = [
        f"argument {index} ({type(each).__name__})"
        for index, each in enumerate(objects)
        if not isinstance(each, Stateful)
    ]
    if without:
        raise DiagError(
            "no-state-dict",
            f"Cannot be saved for want of state_dict and load_state_dict: {', '.join(without)}.",
            "Give the class both methods; state_dict returns a dict of tensors, numbers and strings.",
        )


def class_names(named: Mapping[str, Any]) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in named.items()}


def match(saved: Mapping[str, str], named: Mapping[str, Any]) -> dict[str, Any]:
    """The present parts to load from a checkpoint that holds parts of the classes `saved`.

    A kind that is absent here altogether is left in the file; a scaler that was not saved keeps
    the state it has, since changing the precision between runs is legitimate.

    Raises:
        DiagError: another number of models, optimizers, … than were saved.
    """
    here = class_names(named)
    for kind in ("model", "optimizer", "scheduler", "loader", "custom"):
        theirs, ours = _of_kind(saved, kind), _of_kind(here, kind)
        if ours and len(ours) != len(theirs):
            raise DiagError(
                "checkpoint-other-parts",
                f"The checkpoint holds {_listed(kind, theirs)}; prepared here: {_listed(kind, ours)}.",
                "Prepare and register the same objects in the same order as when it was saved; "
                "prepare any others after load_state.",
            )
    return {name: part for name, part in named.items() if name in saved}


def _of_kind(classes: Mapping[str, str], kind: str) -> list[str]:
    return [name for part, name in classes.items() if part.startswith(f"{kind}.")]


def _listed(kind: str, classes: Sequence[str]) -> str:
    word = "registered object" if kind == "custom" else kind
    plural = word if len(classes) == 1 else f"{word}s"
    return f"{len(classes)} {plural}" + (f" ({', '.join(classes)})" if classes else "")
