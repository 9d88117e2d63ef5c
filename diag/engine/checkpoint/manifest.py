"""`diag-checkpoint.json`: what a checkpoint holds. It is written last, so it is what makes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from diag.errors import DiagError

MANIFEST = "diag-checkpoint.json"
# 1: tensors through torch.distributed.checkpoint, rank<r>.pt for the rest.
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint.

    Attributes:
        version: of this format.
        data: the folder that holds the data, a `torch.distributed.checkpoint` of its own.
        files: sizes in bytes by path, relative to the checkpoint's directory.
        parts: the class of each part by name, e.g. `optimizer.0`: `AdamW`.
        world_size, strategy, step: of the run that saved.
        torch, diag: the versions that wrote it.
        saved_at: UTC, ISO 8601.
    """

    version: int
    data: str
    files: dict[str, int]
    parts: dict[str, str]
    world_size: int
    strategy: str
    step: int
    torch: str
    diag: str
    saved_at: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory`, which must have one.

    Raises:
        DiagError: damaged, or of a newer format.
    """
    path = directory / MANIFEST
    try:
        facts = json.loads(path.read_bytes())
        _check_version(path, facts)
        return _parse(facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DiagError(
            "checkpoint-damaged",
            f"{path} cannot be read as a checkpoint's list of contents: {error}.",
            "Load an earlier checkpoint.",
        ) from error


def check_files(directory: Path, manifest: Manifest) -> None:
    """Every file is there in full.

    Raises:
        DiagError: some are missing or of another size; it names them.
    """
    sizes = {name: _size(directory / name) for name in manifest.files}
    missing = sorted(name for name, size in sizes.items() if size is None)
    if missing:
        raise DiagError(
            "checkpoint-missing-file",
            f"{directory} lacks {len(missing)} of its {len(sizes)} files: {_few(missing)}.",
            "Copy the directory whole (hidden files too), or load an earlier checkpoint.",
        )
    wrong = [
        f"{name} ({sizes[name]} of {expected} bytes)"
        for name, expected in sorted(manifest.files.items())
        if sizes[name] != expected
    ]
    if wrong:
        raise DiagError(
            "checkpoint-truncated",
            f"{directory} holds files of another size than were written: {_few(wrong)}.",
            "The copy was cut short or the file changed. Copy it again, or load an earlier one.",
        )


def _check_version(path: Path, facts: Mapping[str, Any]) -> None:
    if int(facts["version"]) > VERSION:
        raise DiagError(
            "checkpoint-newer",
            f"{path} has format {facts['version']}, written by diag {facts.get('diag')}; "
            f"this diag reads up to {VERSION}.",
            "Upgrade diag: pip install -U diag",
        )


def _parse(facts: Mapping[str, Any]) -> Manifest:
    manifest = Manifest(**{field.name: facts[field.name] for field in fields(Manifest)})
    texts = (manifest.data, manifest.strategy, manifest.torch, manifest.diag, manifest.saved_at)
    numbers = (manifest.version, manifest.world_size, manifest.step, *manifest.files.values())
    if not all(isinstance(text, str) for text in (*texts, *manifest.parts.values())):
        raise TypeError("a text is not one")
    if not all(isinstance(number, int) for number in numbers) or manifest.world_size < 1:
        raise TypeError("a number is not one")
    if not Path(manifest.data).name == manifest.data:
        raise ValueError(f"the data folder {manifest.data!r} lies elsewhere")
    return manifest


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
