"""`save_state`: the whole training into one directory, by all ranks together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import diag
from diag.engine.checkpoint import directories, randomness, storage
from diag.engine.checkpoint.directories import Naming, Staging
from diag.engine.checkpoint.labelled import is_checkpoint
from diag.engine.checkpoint.manifest import VERSION, Manifest
from diag.engine.checkpoint.parts import Parts, class_names
from diag.engine.checkpoint.snapshot import Snapshot
from diag.engine.checkpoint.together import PATIENCE_S, everyones, meet, on_main, together
from diag.engine.process import Process


@is_checkpoint
def save_state(
    directory: str | os.PathLike[str] | None,
    parts: Parts,
    process: Process,
    *,
    naming: Naming | None = None,
    step: int = 0,
    strategy: str = "none",
    patience_s: float = PATIENCE_S,
) -> Path:
    """Save the whole training into `directory`, at once or not at all. Collective.

    A checkpoint that is there already stays loadable until the new one is complete; other files
    in the directory are left alone. The directory must be on a disk that all nodes share.
    Gradients are not saved: between two optimizer steps is the place to save.

    Args:
        directory: where to; None: the next automatic name.
        step: the optimizer steps taken so far, for the manifest.
        strategy: how the models are placed, for the manifest.
        patience_s: how long to wait for a rank that does not come.

    Returns:
        The checkpoint's directory.

    Raises:
        DiagError: on every rank, if any could not save; the previous checkpoint is untouched.
    """
    naming = naming or Naming()
    meet(process, f"save_state({directory or ''})", patience_s)
    target = on_main(
        process, lambda: naming.next() if directory is None else directories.absolute(directory)
    )
    staging = on_main(process, lambda: directories.stage(target))
    try:
        manifest = _write(staging, parts, process, step, strategy)
        on_main(process, lambda: directories.commit(staging, manifest))
    except Exception:
        if process.is_main:
            directories.abandon(staging)
        raise
    if directory is None:
        on_main(process, naming.prune)
    return target


def _write(staging: Staging, parts: Parts, process: Process, step: int, strategy: str) -> Manifest:
    """Write every rank's files; the manifest that names them."""
    snapshot = together(process, lambda: Snapshot(parts, process.is_main))
    of_main = on_main(process, lambda: snapshot.prints)
    storage.write_tensors(staging.folder, snapshot.tensors)
    written = together(process, lambda: _write_own(staging, process, snapshot, of_main))
    files = {name: size for sizes in everyones(process, written) for name, size in sizes.items()}
    on_main(process, lambda: _check_shared(staging, files))
    return Manifest(
        version=VERSION,
        data=staging.data,
        files={f"{staging.data}/{name}": size for name, size in sorted(files.items())},
        parts=class_names(parts.by_name()),
        world_size=process.world_size,
        strategy=strategy,
        step=step,
        torch=torch.__version__,
        diag=diag.__version__,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write_own(
    staging: Staging, process: Process, snapshot: Snapshot, of_main: Mapping[str, str]
) -> dict[str, int]:
    """Write this rank's file and have all its files on the disk; their names and sizes."""
    states: dict[str, Any] = {
        "generators": randomness.capture(process),
        "own": snapshot.to_write(of_main),
    }
    if process.is_main:
        states["outlines"] = snapshot.outlines
    path = staging.folder / directories.rank_file(process.rank)
    storage.write_states(path, states)
    written = [path, *staging.folder.glob(f"__{process.rank}_*")]
    if process.is_main:
        written.append(staging.folder / storage.METADATA)
    for each in written:  # torch syncs its metadata before its buffer is flushed
        directories.sync(each)
    return {each.name: each.stat().st_size for each in written}


def _check_shared(staging: Staging, files: Mapping[str, int]) -> None:
    absent = [name for name in files if not (staging.folder / name).exists()]
    if absent:
        raise directories.not_shared(
            staging.final, f"rank 0 does not see {absent[0]}, which another wrote"
        )
