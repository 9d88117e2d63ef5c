"""Where checkpoints lie, and how one comes to be at once or not at all.

    checkpoint_3/
        diag-checkpoint.json    replaced as one file: that instant is the save
        diag-data-5f0c2a91/     what it names; diag-data-….incomplete while it is written

A new checkpoint is built as `checkpoint_3.incomplete` and renamed; one that is saved over keeps
its old data folder until the new manifest is in place. Whenever the process is killed, the
previous checkpoint loads, and what is half done says so in its name. Other files that lie in the
directory are never touched.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from diag.engine.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from diag.errors import DiagError

INCOMPLETE = ".incomplete"
_DATA = "diag-data-"
# What a save writes into the directory; nothing else is ever deleted.
_OURS = re.compile(rf"{_DATA}[0-9a-f]{{8}}({INCOMPLETE})?|{MANIFEST}({INCOMPLETE})?")
_NUMBERED = re.compile(r"checkpoint_(\d+)")


@dataclass(frozen=True)
class Staging:
    """A save under way: the data go to `root/data.incomplete`, and all ends up in `final`."""

    final: Path
    root: Path
    data: str

    @property
    def folder(self) -> Path:
        return self.root / (self.data + INCOMPLETE)


@dataclass(frozen=True)
class Naming:
    """What to call checkpoints; the names are Accelerate's.

    Attributes:
        project_dir: automatic checkpoints are `project_dir/checkpoints/checkpoint_<n>`.
        automatic_checkpoint_naming: whether save_state and load_state may be called without a
            directory.
        total_limit: how many automatic checkpoints to keep; None keeps all. An old one is
            deleted only after the new one is complete, so there is room for one more on disk.

    Raises:
        DiagError: a limit below 1; automatic naming without a directory.
    """

    project_dir: str | os.PathLike[str] | None = None
    automatic_checkpoint_naming: bool = False
    total_limit: int | None = None

    def __post_init__(self) -> None:
        if self.total_limit is not None and self.total_limit < 1:
            raise DiagError(
                "bad-total-limit",
                f"total_limit is {self.total_limit}; at least 1 checkpoint must be kept.",
                "Leave it out to keep all.",
            )
        if self.automatic_checkpoint_naming and self.project_dir is None:
            raise DiagError(
                "no-project-dir",
                "automatic_checkpoint_naming needs a directory to name checkpoints in.",
                "Give project_dir='…'.",
            )

    def next(self) -> Path:
        """The directory of the next automatic checkpoint: one number above all that are there."""
        folder = self._folder("save")
        numbers = [number for number, _ in _numbered(folder)]
        return folder / f"checkpoint_{max(numbers, default=-1) + 1}"

    def newest(self) -> Path:
        """The newest complete automatic checkpoint."""
        folder = self._folder("load")
        complete = [path for _, path in _numbered(folder) if is_complete(path)]
        if not complete:
            raise DiagError(
                "no-such-checkpoint",
                f"{folder} holds no complete checkpoint.",
                "save_state() makes the first one; load_state('…') loads from elsewhere.",
            )
        return complete[-1]

    def prune(self) -> None:
        """Delete the oldest automatic checkpoints above the limit, and what saves left half done."""
        folder = self._folder("prune")
        for left in folder.glob(f"checkpoint_*{INCOMPLETE}"):
            if not _foreign_in(left):
                shutil.rmtree(left)
        complete = [path for _, path in _numbered(folder) if is_complete(path)]
        excess = len(complete) - self.total_limit if self.total_limit is not None else 0
        for path in complete[: max(excess, 0)]:
            os.rename(path, _beside(path))  # interrupted, what is left is not taken for one
            shutil.rmtree(_beside(path))

    def _folder(self, verb: str) -> Path:
        if self.project_dir is None or not self.automatic_checkpoint_naming:
            raise DiagError(
                "no-checkpoint-directory",
                f"No directory was given to {verb} the state.",
                "Name one, or turn on automatic_checkpoint_naming with a project_dir.",
            )
        return Path(self.project_dir) / "checkpoints"


def absolute(directory: str | os.PathLike[str]) -> Path:
    return Path(directory).expanduser().absolute()


def rank_file(rank: int) -> str:
    """The file of rank `rank`'s own states, in the data folder."""
    return f"rank{rank}.pt"


def is_complete(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def stage(directory: Path) -> Staging:
    """Make room for a save into `directory`, and remove what an interrupted one left.

    Raises:
        DiagError: it is a file, or its temporary name is taken by something else.
        OSError: it cannot be made.
    """
    if directory.exists() and not directory.is_dir():
        raise DiagError(
            "checkpoint-not-a-directory",
            f"{directory} is a file; a checkpoint is a directory.",
            "Give another name.",
        )
    beside = _beside(directory)
    _remove_leftover(beside)
    root = directory if directory.exists() else beside
    _sweep(root)
    staging = Staging(directory, root, _DATA + secrets.token_hex(4))
    staging.folder.mkdir(parents=True)
    return staging


def commit(staging: Staging, manifest: Manifest) -> None:
    """Make the staged data the checkpoint in `staging.final`, at once or not at all."""
    sync(staging.folder)
    os.rename(staging.folder, staging.root / staging.data)
    sync(staging.root)
    temporary = staging.root / (MANIFEST + INCOMPLETE)
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(manifest.to_json())
    sync(temporary)
    os.replace(temporary, staging.root / MANIFEST)
    sync(staging.root)
    if staging.root != staging.final:
        os.rename(staging.root, staging.final)
        sync(staging.final.parent)
    _sweep(staging.final)


def abandon(staging: Staging) -> None:
    """Remove what a failed save has written."""
    new = staging.root != staging.final
    shutil.rmtree(staging.root if new else staging.folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(directory: Path) -> Manifest:
    """The manifest of the checkpoint in `directory`.

    Raises:
        DiagError: there is none; the error says what is there instead.
    """
    if not directory.exists():
        raise _absent(directory)
    if not directory.is_dir():
        raise DiagError(
            "not-a-checkpoint",
            f"{directory} is a file; a checkpoint is a directory that holds {MANIFEST}.",
            "A file of weights is loaded by torch.load or load_checkpoint_and_dispatch.",
        )
    if not is_complete(directory):
        raise _incomplete(directory) if _half_done(directory) else _foreign(directory)
    return read_manifest(directory)


def _beside(directory: Path) -> Path:
    return directory.with_name(directory.name + INCOMPLETE)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The automatic checkpoints in `folder`, oldest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    matches = [(match, path) for path in entries if (match := _NUMBERED.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


def _half_done(directory: Path) -> bool:
    return directory.suffix == INCOMPLETE or any(directory.glob(f"{_DATA}*{INCOMPLETE}"))


def _sweep(root: Path) -> None:
    """Remove data folders that the manifest does not name: what interrupted saves left."""
    try:
        named = read_manifest(root).data if is_complete(root) else None
    except DiagError:
        return  # a damaged one's data may still be of use to somebody, until a save succeeds
    for folder in root.glob(f"{_DATA}*"):
        if folder.name != named and _OURS.fullmatch(folder.name):
            shutil.rmtree(folder)


def _remove_leftover(directory: Path) -> None:
    """Remove `….incomplete` if a save made it.

    Raises:
        DiagError: it holds anything else.
    """
    if not directory.is_dir():
        return
    if foreign := _foreign_in(directory):
        raise DiagError(
            "checkpoint-name-taken",
            f"{directory} is where an unfinished save would be, and holds {foreign[0]}.",
            "Move it away.",
        )
    shutil.rmtree(directory)


def _foreign_in(directory: Path) -> list[str]:
    """What no save has written there."""
    return [path.name for path in directory.iterdir() if not _OURS.fullmatch(path.name)]


def _absent(directory: Path) -> DiagError:
    if _beside(directory).exists():
        return _incomplete(_beside(directory))
    return DiagError(
        "no-such-checkpoint", f"{directory} does not exist.", _others(directory.parent)
    )


def _incomplete(directory: Path) -> DiagError:
    parent = directory.parent
    return DiagError(
        "checkpoint-incomplete",
        f"{directory} was never finished: the save was cut off.",
        _others(parent) or "Load an earlier checkpoint.",
    )


def _foreign(directory: Path) -> DiagError:
    if (directory / "random_states_0.pkl").exists():
        hint = (
            "It looks like one of Accelerate's: its weights load by load_checkpoint_and_dispatch."
        )
    else:
        hint = _others(directory)
    return DiagError("not-a-checkpoint", f"{directory} holds no {MANIFEST}.", hint)


def _others(folder: Path) -> str:
    """The newest complete checkpoint in `folder`, as a hint; "" without one."""
    complete = [path for path in folder.iterdir() if is_complete(path)] if folder.is_dir() else []
    if not complete:
        return ""
    newest = max(complete, key=lambda path: (path / MANIFEST).stat().st_mtime)
    return f"The newest complete one there: load_state('{newest}')"


def not_shared(directory: Path, evidence: str) -> DiagError:
    return DiagError(
        "checkpoint-directory-not-shared",
        f"{directory} is not the same directory on every node: {evidence}.",
        "Save to and load from a file system that all nodes mount.",
    )
