"""Optimizer states by the parameters' names, so that they outlive another placement.

`torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` is not used: an optimizer that
has not stepped yet is stepped by it (Adam's step count becomes 1, L2 decay enters its averages,
step hooks run), and a parameter that never had a gradient makes its counterpart raise. Nothing
here touches the optimizer that is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diag.errors import DiagError

Names = Mapping[int, str]  # by id(parameter)
# What a nest of tensors is turned into, tensor by tensor: (path, tensor) → replacement.
Exchange = Callable[[str, Tensor], Any]


def capture(
    key: str, optimizer: Optimizer, names: Names
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state in two: an outline with empty meta tensors, and the tensors by path."""
    packed = optimizer.state_dict()
    groups = [
        {**packed_group, "params": _names_of(group, names)}
        for packed_group, group in zip(packed["param_groups"], optimizer.param_groups, strict=True)
    ]
    name_of = {
        number: name
        for packed_group, group in zip(packed["param_groups"], groups, strict=True)
        for number, name in zip(packed_group["params"], group["params"], strict=True)
    }
    state = {name_of.get(number, number): value for number, value in packed["state"].items()}
    tensors: dict[str, Tensor] = {}

    def take(path: str, tensor: Tensor) -> Tensor:
        assert path not in tensors, path
        tensors[path] = tensor.detach()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return exchange({**packed, "state": state, "param_groups": groups}, key, take), tensors


def prepare(
    key: str, outline: dict[str, Any], optimizer: Optimizer, names: Names
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The saved `outline` with room for its tensors, placed as `optimizer`'s parameters are.

    Returns:
        The state to give to `load` once the tensors, by path, have been filled in place.
    """
    tensors: dict[str, Tensor] = {}
    parameters = {
        names[id(parameter)]: parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
    }

    def make(like: Tensor | None, path: str, outlined: Tensor) -> Tensor:
        tensors[path] = _room(outlined, like)
        return tensors[path]

    state = {
        name: exchange(value, f"{key}.state.{name}", partial(make, parameters.get(name)))
        for name, value in outline["state"].items()
    }
    rest = {name: value for name, value in outline.items() if name != "state"}
    return {**exchange(rest, key, partial(make, None)), "state": state}, tensors


def load(optimizer: Optimizer, named: dict[str, Any], names: Names) -> None:
    """Give `optimizer` the state that `prepare` laid out."""
    packed = optimizer.state_dict()["param_groups"]
    number_of = {
        name: number
        for packed_group, group in zip(packed, optimizer.param_groups, strict=True)
        for name, number in zip(_names_of(group, names), packed_group["params"], strict=True)
    }
    groups = [
        {**group, "params": packed_group["params"]}
        for group, packed_group in zip(named["param_groups"], packed, strict=True)
    ]
    state = {number_of.get(name, name): value for name, value in named["state"].items()}
    optimizer.load_state_dict({**named, "state": state, "param_groups": groups})


def parameter_of(key: str, path: str, names: Iterable[str]) -> str | None:
    """Which of the parameters `names` the tensor at `path` of optimizer `key` is the state of."""
    return next((name for name in names if path.startswith(f"{key}.state.{name}.")), None)


def check_same(
    key: str, saved_class: str, outline: Mapping[str, Any], optimizer: Optimizer, names: Names
) -> None:
    """Refuse another optimizer's state.

    Raises:
        DiagError: another class, or other parameters in a group; it names the first ones.
    """
    here = type(optimizer).__name__
    if saved_class != here:
        raise _other(key, f"is {saved_class} in the checkpoint and {here} here")
    theirs = [group["params"] for group in outline["param_groups"]]
    ours = [_names_of(group, names) for group in optimizer.param_groups]
    if len(theirs) != len(ours):
        raise _other(key, f"has {len(theirs)} parameter groups in the checkpoint, {len(ours)} here")
    for index, (saved, present) in enumerate(zip(theirs, ours, strict=True)):
        if differing := sorted(set(saved) ^ set(present)):
            where = "in the checkpoint" if differing[0] in saved else "here"
            counts = f"{len(saved)} parameters in the checkpoint, {len(present)} here"
            raise _other(key, f"group {index}: {counts}; {differing[0]} is only {where}")


def exchange(nest: Any, path: str, tensor_to: Exchange) -> Any:
    """A copy of a nest of dicts, lists and tuples with every tensor replaced."""
    if isinstance(nest, Tensor):
        return tensor_to(path, nest)
    if isinstance(nest, Mapping):
        return {k: exchange(value, f"{path}.{k}", tensor_to) for k, value in nest.items()}
    if isinstance(nest, (list, tuple)):
        items = [exchange(value, f"{path}.{i}", tensor_to) for i, value in enumerate(nest)]
        return items if isinstance(nest, list) else tuple(items)
    return nest


def _room(outlined: Tensor, like: Tensor | None) -> Tensor:
    # A scalar stays on the CPU, where optimizers keep their step counts; they move it themselves.
    if like is None or outlined.ndim == 0 or outlined.shape != like.shape:
        return torch.empty(outlined.shape, dtype=outlined.dtype)
    return torch.empty_like(like.detach(), dtype=outlined.dtype)


def _names_of(group: Mapping[str, Any], names: Names) -> list[str]:
    return [names[id(parameter)] for parameter in group["params"]]


def _other(key: str, difference: str) -> DiagError:
    return DiagError(
        "checkpoint-other-optimizer",
        f"{key} {difference}.",
        "Build the optimizer as it was when the checkpoint was saved, with the same groups.",
    )
