"""Device maps: made for a model, read by a user, checked against the model."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from diag.engine.big.layout import ModelTensor, Site, sites_of, tensors_of
from diag.engine.big.plan import Part, assign
from diag.engine.big.sizes import Device, device_of, place_of, rooms_of
from diag.errors import DiagError

DType = torch.dtype | str | None


def infer_device_map(
    model: nn.Module,
    max_memory: Mapping[Device, int | str] | None = None,
    no_split_module_classes: Collection[str] | str | None = None,
    dtype: DType = None,
    balanced: bool = True,
) -> dict[str, Device]:
    """Where each part of `model` would go: module or parameter name → GPU number, "cpu" or "disk".

    The model may be empty (`init_empty_weights`). Blocks that share a weight go together.

    Args:
        max_memory: what each place may hold, in bytes or as "20GiB". None: what is free now.
        no_split_module_classes: classes of blocks that stay whole. None: the model's own
            `_no_split_modules`, else the elements of its lists of modules.
        dtype: what floating-point weights will be loaded as. None: what the model has.
        balanced: level the GPUs, when they hold all of it.

    Raises:
        DiagError: it does not fit, or an argument cannot be read.
    """
    parts = parts_of(model, classes_in(no_split_module_classes, model), dtype_in(dtype))
    places = assign(parts, rooms_of(max_memory), balanced)
    by_name = {
        name: place for part, place in zip(parts, places, strict=True) for name in part.names
    }
    return {name: device_of(place) for name, place in _collapsed(by_name, "").items()}


def classes_in(classes: Collection[str] | str | None, model: nn.Module) -> Collection[str] | None:
    """Class names as the user gave them.

    Raises:
        DiagError: some are given and `model` has a module of none of them.
    """
    named = [classes] if isinstance(classes, str) else classes
    present = {type(module).__name__ for module in model.modules()}
    if named and present.isdisjoint(named):
        near = difflib.get_close_matches(next(iter(named)), present, 3)
        raise DiagError(
            "unknown-class",
            f"No module of the model is a {' or '.join(named)} (no_split_module_classes).",
            hint=f"Near it: {', '.join(near)}." if near else "",
        )
    return named


def dtype_in(dtype: DType) -> torch.dtype | None:
    """torch.float16 for itself, "float16" and "torch.float16".

    Raises:
        DiagError: no floating-point type of torch is called so.
    """
    found = getattr(torch, dtype.removeprefix("torch."), dtype) if isinstance(dtype, str) else dtype
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise DiagError(
        "bad-dtype",
        f"Weights cannot be loaded as {dtype!r}.",
        hint="Floating-point types convert: torch.bfloat16, 'float16' …; None keeps the model's.",
    )


def parts_of(
    model: nn.Module, whole: Collection[str] | None, dtype: torch.dtype | None
) -> list[Part]:
    """What is placed as one, in the model's order, with its bytes as `dtype`."""
    tensors = {name: tensor for tensor in tensors_of(model) for name in tensor.names}
    pieces = [
        (key, site, [tensors[name] for name in names])
        for site in sites_of(model, whole)
        for key, names in _pieces(site)
    ]
    bound = _bound_together([{t.name for t in held if not t.is_buffer} for _, _, held in pieces])
    return [_part([pieces[index] for index in indices], tensors, dtype) for indices in bound]


Piece = tuple[str, Site, list[ModelTensor]]


def _pieces(site: Site) -> list[tuple[str, list[str]]]:
    """A block goes by its name; a module's own tensors each by theirs, as its children have
    places of their own."""
    names = [name for name, _ in site.slots()]
    return [(site.name, names)] if site.is_block else [(name, [name]) for name in names]


def _bound_together(shared: Sequence[set[str]]) -> list[list[int]]:
    """Indices of what has a weight in common, directly or through others; in order."""
    groups: list[tuple[set[str], list[int]]] = []
    for index, names in enumerate(shared):
        joined = [group for group in groups if group[0] & names]
        if not joined:
            groups.append((set(names), [index]))
            continue
        first = joined[0]
        first[0].update(names, *(group[0] for group in joined[1:]))
        first[1].extend([*(i for group in joined[1:] for i in group[1]), index])
        groups = [group for group in groups if group is first or group not in joined]
    return [indices for _, indices in groups]


def _part(
    pieces: Sequence[Piece], tensors: Mapping[str, ModelTensor], dtype: torch.dtype | None
) -> Part:
    held = {tensor.name: tensor for _, _, inside in pieces for tensor in inside}.values()
    return Part(
        names=tuple(key for key, _, _ in pieces),
        weights=_bytes((t for t in held if not t.is_buffer), dtype),
        buffers=_bytes((t for t in held if t.is_buffer), dtype),
        fetched=max(_fetched(site, tensors, dtype) for _, site, _ in pieces),
    )


def _fetched(site: Site, tensors: Mapping[str, ModelTensor], dtype: torch.dtype | None) -> int:
    """Bytes of its weights and of those around it, all of which may be held elsewhere."""
    names = [name for around in (*site.within, site) for name, _ in around.slots()]
    needed = {tensors[name].name: tensors[name] for name in names}
    return _bytes((tensor for tensor in needed.values() if not tensor.is_buffer), dtype)


def _bytes(tensors: Iterable[ModelTensor], dtype: torch.dtype | None) -> int:
    return sum(tensor.bytes_as(dtype) for tensor in tensors)


def _collapsed(places: Mapping[str, str], prefix: str) -> dict[str, str]:
    """`places` with one entry for a module all of which is in one place."""
    inside = {name: place for name, place in places.items() if is_inside(name, prefix)}
    if len(set(inside.values())) == 1:
        return {prefix: next(iter(inside.values()))}
    depth = prefix.count(".") + 1 if prefix else 0
    below = dict.fromkeys(".".join(name.split(".")[: depth + 1]) for name in inside)
    return {k: v for child in below for k, v in _collapsed(inside, child).items()}


def is_inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix + ".")


def places_in(device_map: Mapping[str, object], model: nn.Module) -> dict[str, str]:
    """The place of every tensor name of `model`, by the longest entry that covers it.

    Raises:
        DiagError: a name is not the model's, a place is not known, or a tensor has none.
    """
    wanted = {name: place_of(device) for name, device in device_map.items()}
    tensors = tensors_of(model)
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    _require_known(wanted, [*modules, *(name for tensor in tensors for name in tensor.names)])
    found: dict[str, str] = {}
    missing = []
    for tensor in tensors:
        covered = {n: place for n in tensor.names if (place := _covering(wanted, n)) is not None}
        if not covered:
            missing.append(tensor.name)
        # One name of several is enough: the others are the same tensor.
        found |= dict.fromkeys(tensor.names, next(iter(covered.values()), "")) | covered
    if missing:
        raise DiagError(
            "incomplete-device-map",
            f"The device map has no place for {some_of(missing)}.",
            hint="Add them, or an entry '' for all that has no other.",
        )
    return found


def _covering(wanted: Mapping[str, str], name: str) -> str | None:
    while name and name not in wanted:
        name = name.rpartition(".")[0]
    return wanted.get(name)


def _require_known(wanted: Mapping[str, str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            raise DiagError(
                "unknown-module",
                f"The device map names {name!r}, which the model does not have.",
                hint=f"Near it: {', '.join(near)}." if near else "",
            )


def some_of(names: Sequence[str], most: int = 5) -> str:
    """ "'a', 'b' and 7 more"."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
