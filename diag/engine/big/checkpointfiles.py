"""Where a checkpoint's tensors are: in one file, or in the shards an index names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from diag.engine.big.safefile import Stored, read_header
from diag.errors import DiagError

_WHOLE = "model.safetensors"
_INDEX = ".safetensors.index.json"


def open_checkpoint(checkpoint: str | os.PathLike[str]) -> dict[str, Stored]:
    """Every tensor of a checkpoint by name: headers are read, values are not.

    Args:
        checkpoint: a safetensors file, the `….safetensors.index.json` of a sharded checkpoint,
            or a folder with either.

    Raises:
        DiagError: there is none, a shard is missing, or a file is damaged.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise DiagError("no-such-checkpoint", f"There is no checkpoint at {path}.")
    return _sharded(path) if path.suffix == ".json" else read_header(path)


def _in_folder(folder: Path) -> Path:
    if (folder / _WHOLE).exists():
        return folder / _WHOLE
    found = sorted(folder.glob(f"*{_INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    raise DiagError(
        "no-such-checkpoint",
        f"{folder} holds no {_WHOLE}, and {len(found) or 'no'} other safetensors checkpoints.",
        hint="Name the file, or the index of the shards, itself.",
    )


def _sharded(index: Path) -> dict[str, Stored]:
    files = _weight_map(index)
    missing = sorted(name for name in set(files.values()) if not (index.parent / name).is_file())
    if missing:
        raise DiagError(
            "missing-shard",
            f"{index.name} names {len(set(files.values()))} files; missing beside it: "
            f"{', '.join(missing)}.",
            hint="Download or copy them to the same folder.",
        )
    stored: dict[str, Stored] = {}
    for file in sorted(set(files.values())):
        stored |= read_header(index.parent / file)
    absent = [name for name, file in files.items() if name not in stored]
    if absent:
        raise DiagError(
            "missing-shard",
            f"{index.name} says {files[absent[0]]} holds {absent[0]!r}; it does not.",
            hint="Index and shards are of different checkpoints: fetch both again.",
        )
    return stored


def _weight_map(index: Path) -> dict[str, str]:
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
        files = read.get("weight_map", read)
        return {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DiagError(
            "bad-index",
            f"{index} is no index of a sharded checkpoint: {error}.",
            hint='It is JSON: {"weight_map": {TENSOR: FILE, …}}.',
        ) from error
