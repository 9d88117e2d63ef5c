"""A checkpoint into a model that may be larger than any device: each weight goes to its place."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from diag.engine.amounts import in_words
from diag.engine.big.checkpointfiles import open_checkpoint
from diag.engine.big.devicemap import DType, classes_in, dtype_in, infer_device_map, places_in
from diag.engine.big.dispatch import Needs, Weight, dispatch, is_dispatched
from diag.engine.big.homes import Homes, find_homes
from diag.engine.big.layout import ModelTensor, sites_of, tensors_of
from diag.engine.big.match import match
from diag.engine.big.safefile import Stored, converted_bytes, read_header, write_safefile
from diag.engine.big.sizes import DISK, Device, device_of, place_of, require_present
from diag.errors import DiagError

_log = logging.getLogger(__name__)
_COPY = "offloaded.safetensors"
_Model = TypeVar("_Model", bound=nn.Module)


def load_checkpoint_and_dispatch(
    model: _Model,
    checkpoint: str | os.PathLike[str],
    device_map: str | Mapping[str, Device | torch.device] = "auto",
    max_memory: Mapping[Device, int | str] | None = None,
    no_split_module_classes: Collection[str] | str | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    dtype: DType = None,
    strict: bool = False,
) -> _Model:
    """Load a safetensors checkpoint into `model`, each part where `device_map` puts it.

    Layers on the CPU (when there is a GPU) or on the disk come to the first GPU (else the CPU)
    for their forward, block by block, and leave it after. Buffers stay where they are used.
    The results are bit for bit those of the model in one place. With anything on CPU or disk the
    model is for inference: its parameters are frozen. A map with a single computing device leaves
    a plain module there. A single process's business: ranks of a job train with `Engine`.

    Args:
        model: may be empty (`init_empty_weights`).
        checkpoint: a safetensors file, an index of shards, or a folder with either.
        device_map: module or parameter name → GPU number, "cpu", "disk" or a torch device, the
            longest name that fits counts; "auto" levels the GPUs, "sequential" fills each in turn.
        max_memory, no_split_module_classes: as in `infer_device_map`. Blocks that stay whole are
            also fetched whole: name a class whose forward uses weights of modules inside it
            without calling them.
        offload_folder: weights on the disk are copied there as they are wanted. None: they are
            read from the checkpoint itself, which must stay as it is.
        dtype: what floating-point weights are loaded as. None: what the model has.
        strict: raise if the checkpoint and the model differ in names; else it is logged.

    Returns:
        `model` itself, with the map in `model.hf_device_map` (where transformers looks for it).

    Raises:
        DiagError: nothing fits, the checkpoint is damaged or another model's, a place is not
            there or cannot be written.
    """
    if is_dispatched(model):
        raise DiagError("already-dispatched", "The model was dispatched before; make a new one.")
    wanted = dtype_in(dtype)
    classes = classes_in(no_split_module_classes, model)
    tensors = tensors_of(model)
    found = match(tensors, open_checkpoint(checkpoint), strict)
    if isinstance(device_map, str):
        balanced = _is_balanced(device_map)
        device_map = infer_device_map(model, max_memory, classes, wanted, balanced)
    places = places_in(device_map, model)
    require_present(places)
    homes = find_homes(tensors, sites_of(model, classes), places)
    on_disk = [t for t in tensors if homes.of[t.name] == DISK and t.name in found]
    if offload_folder is not None and on_disk:
        found |= _copied(on_disk, found, wanted, Path(offload_folder))
    settled = [_settle(t, found.get(t.name), homes.of[t.name], wanted) for t in tensors]
    if homes.have_waiting:
        model.requires_grad_(False)
    if homes.are_spread:
        _dispatch(model, tensors, homes, settled)
    model.hf_device_map = {name: device_of(place_of(d)) for name, d in device_map.items()}  # type: ignore[assignment]
    _log.info("%s: %s", type(model).__name__, _summary(tensors, homes, wanted))
    return model


def _is_balanced(word: str) -> bool:
    if word in ("auto", "balanced", "sequential"):
        return word != "sequential"
    raise DiagError(
        "bad-device-map",
        f"device_map={word!r} is none of 'auto', 'sequential' and a mapping of names to devices.",
        hint="For all of the model in one place: device_map={'': 0}.",
    )


def _copied(
    tensors: Sequence[ModelTensor],
    found: Mapping[str, Stored],
    dtype: torch.dtype | None,
    folder: Path,
) -> dict[str, Stored]:
    """Copies of what waits on the disk, as it is wanted, in a file in `folder`."""
    wanted = {t.name: (found[t.name], t.dtype_as(dtype)) for t in tensors}
    needed = sum(converted_bytes(stored, as_type) for stored, as_type in wanted.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiagError(
                "disk-full",
                f"{in_words(needed)} of weights go to {folder}, which has {in_words(free)} free.",
                hint="Leave offload_folder out: they are then read from the checkpoint itself.",
            )
        write_safefile(folder / _COPY, wanted.values())
    except OSError as error:
        raise DiagError(
            "offload-folder-not-writable",
            f"{in_words(needed)} of weights cannot be written to {folder}: {error.strerror or error}.",
            hint="Leave offload_folder out: they are then read from the checkpoint itself.",
        ) from error
    copies = read_header(folder / _COPY)
    return {name: copies[stored.name] for name, (stored, _) in wanted.items()}


def _settle(
    tensor: ModelTensor, stored: Stored | None, home: str, dtype: torch.dtype | None
) -> Weight:
    """Put the tensor where it lives, in all its slots; how to read it from elsewhere."""
    wanted = tensor.dtype_as(dtype)
    if home == DISK and stored is not None:
        empty = torch.empty_like(tensor.tensor, dtype=wanted, device="meta")
        _put(tensor, empty)
        return Weight(partial(_read, stored, wanted), tensor.is_buffer)
    # The model's own value, where the checkpoint has none, cannot be read again from the disk.
    device = torch.device("cpu" if home == DISK else home)
    value = tensor.tensor.detach() if stored is None else stored.read()
    _put(tensor, value.to(wanted).to(device))
    return Weight(tensor.slots[0].get().detach, tensor.is_buffer)


def _read(stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    return stored.read().to(dtype)


def _put(tensor: ModelTensor, value: torch.Tensor) -> None:
    old = tensor.tensor
    if not old.is_meta and not value.is_meta:
        old.data = value  # whoever holds it, an optimizer for one, holds it still
        return
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
        value.__class__ = type(old)
        value.__dict__.update(old.__dict__)
    for slot in tensor.slots:
        slot.set(value)


def _dispatch(
    model: nn.Module, tensors: Sequence[ModelTensor], homes: Homes, settled: Sequence[Weight]
) -> None:
    pairs = list(zip(tensors, settled, strict=True))
    weights = {name: weight for tensor, weight in pairs for name in tensor.names}
    needs = {
        site.module: Needs(
            torch.device(place),
            [(slot, weights[name]) for name, slot in site.slots() if homes.of[name] != place],
        )
        for site, place in homes.sites
    }
    start = needs.pop(model, Needs(torch.device(homes.start)))
    empty = [
        (slot, weight)
        for tensor, weight in pairs
        for slot in tensor.slots
        if homes.of[tensor.name] == DISK
    ]
    dispatch(model, start, list(needs.items()), empty)


def _summary(tensors: Sequence[ModelTensor], homes: Homes, dtype: torch.dtype | None) -> str:
    held: Counter[str] = Counter()
    for tensor in tensors:
        held[homes.of[tensor.name]] += tensor.bytes_as(dtype)
    return ", ".join(f"{in_words(num_bytes)} on {place}" for place, num_bytes in held.items())
