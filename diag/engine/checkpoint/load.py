"""`load_state`: the whole training back as it was saved, on any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from diag.engine.checkpoint import directories, optimizers, randomness, storage, weights
from diag.engine.checkpoint.directories import Naming
from diag.engine.checkpoint.labelled import is_checkpoint
from diag.engine.checkpoint.manifest import Manifest, check_files
from diag.engine.checkpoint.parts import Parts, match, modules_of, optimizers_of, plain_of
from diag.engine.checkpoint.together import PATIENCE_S, everyones, meet, on_main, together
from diag.engine.process import Process


@dataclass(frozen=True)
class Loaded:
    """What `load_state` found.

    Attributes:
        directory: the checkpoint's.
        step, world_size, strategy: of the run that saved it.
        kept: the parts that keep the state they had, since the checkpoint has none for them.
    """

    directory: Path
    step: int
    world_size: int
    strategy: str
    kept: tuple[str, ...]


@is_checkpoint
def load_state(
    directory: str | os.PathLike[str] | None,
    parts: Parts,
    process: Process,
    *,
    naming: Naming | None = None,
    patience_s: float = PATIENCE_S,
) -> Loaded:
    """Put the whole training back as it was saved, on any number of ranks. Collective.

    On as many ranks as saved, each rank gets its own state back. On another number, loaders,
    schedulers and registered objects get rank 0's state everywhere, and ranks that were not there
    get generators by `randomness.for_new_rank`.

    Args:
        directory: the checkpoint's; None: the newest automatic one that is complete.

    Raises:
        DiagError: on every rank, if any could not load. Nothing was changed if the checkpoint is
            absent, damaged or of something else; a file that cannot be read to its end, though of
            the right size, may leave the models half loaded.
    """
    naming = naming or Naming()
    meet(process, f"load_state({directory or ''})", patience_s)
    found = on_main(
        process, lambda: naming.newest() if directory is None else directories.absolute(directory)
    )
    load = together(process, lambda: _open(found, parts, process))
    if len(set(everyones(process, load.manifest.data))) > 1:
        raise directories.not_shared(found, "each node finds another checkpoint there")
    storage.read_tensors(found / load.manifest.data, load.metadata, load.tensors)
    together(process, lambda: _apply(load, process))
    manifest = load.manifest
    kept = tuple(name for name in parts.by_name() if name not in load.named)
    return Loaded(found, manifest.step, manifest.world_size, manifest.strategy, kept)


@dataclass(frozen=True)
class _Load:
    """A checkpoint that fits, with room for its tensors.

    Attributes:
        named: the parts to load.
        tensors: to be filled in place.
        models: each model's whole state by name, made of those tensors.
        optimizing: each optimizer's state, likewise.
        names: the parameters' names by id.
        own: this rank's plain states and buffers by name.
    """

    manifest: Manifest
    metadata: Metadata
    named: dict[str, Any]
    tensors: dict[str, Tensor]
    models: dict[str, dict[str, Any]]
    optimizing: dict[str, dict[str, Any]]
    names: dict[int, str]
    own: dict[str, Any]
    generators: randomness.Generators


def _open(directory: Path, parts: Parts, process: Process) -> _Load:
    """Check a checkpoint and make ready to load it."""
    manifest = directories.find(directory)
    if process.is_main:  # once is enough, and a thousand ranks would stat a million files
        check_files(directory, manifest)
    folder = directory / manifest.data
    main = storage.read_states(folder / directories.rank_file(0), "own", "outlines")
    own = main["own"]
    if process.world_size == manifest.world_size:
        own |= storage.read_states(folder / directories.rank_file(process.rank), "own")["own"]
    return _lay_out(
        manifest,
        storage.read_metadata(folder),
        match(manifest.parts, parts.by_name()),
        main["outlines"],
        own,
        _generators(folder, manifest, process),
    )


def _lay_out(
    manifest: Manifest,
    metadata: Metadata,
    named: dict[str, Any],
    outlines: Mapping[str, Any],
    own: dict[str, Any],
    generators: randomness.Generators,
) -> _Load:
    """Room for every tensor, in the models themselves and in new optimizer states."""
    models = {key: weights.model_state(model) for key, model in modules_of(named).items()}
    shapes = storage.tensor_shapes(metadata)
    for key, state in models.items():
        saved = _under(key, shapes) | dict.fromkeys(outlines[key])
        weights.check_same_tensors(key, saved, _shapes(state))
        state |= outlines[key]
    tensors = {
        f"{key}.{name}": value
        for key, state in models.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    names = weights.name_parameters(modules_of(named))
    tensors |= weights.name_loose(optimizers_of(named), names)
    optimizing = {}
    for key, optimizer in optimizers_of(named).items():
        optimizers.check_same(key, manifest.parts[key], outlines[key], optimizer, names)
        optimizing[key], room = optimizers.prepare(key, outlines[key], optimizer, names)
        tensors |= room
    return _Load(manifest, metadata, named, tensors, models, optimizing, names, own, generators)


def _apply(load: _Load, process: Process) -> None:
    with torch.no_grad():
        for name in load.own.keys() & load.tensors.keys():
            load.tensors[name].copy_(load.own[name])
    for key, model in modules_of(load.named).items():
        weights.set_model_state(model, load.models[key])
    for key, optimizer in optimizers_of(load.named).items():
        optimizers.load(optimizer, load.optimizing[key], load.names)
    for key, part in plain_of(load.named).items():
        part.load_state_dict(load.own[key])
    randomness.restore(load.generators, process)  # last: what is loaded may draw


def _generators(folder: Path, manifest: Manifest, process: Process) -> randomness.Generators:
    def saved(rank: int) -> randomness.Generators:
        path = folder / directories.rank_file(rank)
        generators: randomness.Generators = storage.read_states(path, "generators")["generators"]
        return generators

    if process.rank < manifest.world_size:
        return saved(process.rank)
    return randomness.for_new_rank(process.rank, [saved(r) for r in range(manifest.world_size)])


def _under(key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    start = f"{key}."
    return {name[len(start) :]: shape for name, shape in shapes.items() if name.startswith(start)}


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {n: tuple(v.shape) if isinstance(v, Tensor) else None for n, v in state.items()}
