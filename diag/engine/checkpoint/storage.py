"""Reading and writing the files, so that nothing in them can run code when they are read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from diag.errors import DiagError

METADATA = ".metadata"
# What torch's own metadata are made of, beside the classes of this module, dtypes and paths.
_METADATA_MODULE = "torch.distributed.checkpoint.metadata"
_METADATA_GLOBALS = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write every rank's shards into `folder`; replicated tensors once. Collective.

    Raises:
        DiagError: a rank could not write.
    """
    with _single_process_is_fine(), _agreed("write", folder):
        save(dict(tensors), storage_writer=FileSystemWriter(folder))


def read_tensors(folder: Path, metadata: Metadata, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place, however they were sharded when they were written. Collective.

    Raises:
        DiagError: a rank could not read.
    """
    with _single_process_is_fine(), _agreed("read", folder):
        reader = _Reader(folder, metadata)
        load(dict(tensors), storage_reader=reader, planner=_TensorsOnly())


def read_metadata(folder: Path) -> Metadata:
    """What tensors the checkpoint in `folder` holds, and where.

    Raises:
        DiagError: it cannot be read, or would construct anything but a description.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"holds a {type(metadata).__name__}")
    except Exception as error:
        raise _damaged(path, error) from error
    return metadata


def tensor_shapes(metadata: Metadata) -> dict[str, tuple[int, ...]]:
    """The global shape of each tensor in the checkpoint."""
    return {
        key: tuple(each.size)
        for key, each in metadata.state_dict_metadata.items()
        if isinstance(each, TensorStorageMetadata)
    }


def write_states(path: Path, states: Mapping[str, Any]) -> None:
    """Write a rank's plain states."""
    with path.open("wb") as stream:
        torch.save(dict(states), stream)


def read_states(path: Path, *names: str) -> dict[str, dict[str, Any]]:
    """Read what `write_states` wrote; the states with these names.

    Raises:
        DiagError: damaged, or holds what would run code.
    """
    try:
        with _numpy_allowed():
            states = torch.load(path, map_location="cpu", weights_only=True)
        return {name: dict(states[name]) for name in names}
    except Exception as error:
        raise _damaged(path, error) from error


def fingerprint(owner: str, state: object) -> str:
    """A digest of what would be written of `state`.

    Raises:
        DiagError: it could not be read back without running code from the file.
    """
    written = io.BytesIO()
    try:
        torch.save(state, written)
        written.seek(0)
        with _numpy_allowed():
            torch.load(written, map_location="meta", weights_only=True)
    except Exception as error:
        raise _not_plain(owner, written, error) from error
    return hashlib.blake2b(written.getbuffer(), digest_size=16).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """A digest of a tensor's bytes."""
    raw = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
    return hashlib.blake2b(raw.numpy().data, digest_size=16).hexdigest()


class _MetadataUnpickler(pickle.Unpickler):
    """Torch writes its metadata as a pickle; this builds descriptions and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePosixPath  # its module's name differs between versions of Python
        if (module, name) in _METADATA_GLOBALS:
            return super().find_class(module, name)
        # A name with a dot would be looked up through all that a module has imported.
        found = None if "." in name else getattr(sys.modules.get(module), name, None)
        if module == "torch" and isinstance(found, torch.dtype):
            return found
        if isinstance(found, type) and found.__module__ == module == _METADATA_MODULE:
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


class _Reader(FileSystemReader):
    """Reads with metadata already checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _TensorsOnly(DefaultLoadPlanner):
    """Refuses pickled objects, which torch's own planner would unpickle whatever they hold."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is not a tensor in the file")


@contextlib.contextmanager
def _single_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is ", category=UserWarning)
        yield


@contextlib.contextmanager
def _agreed(verb: str, folder: Path) -> Iterator[None]:
    """Torch tells every rank of any rank's failure; put it in our words."""
    try:
        yield
    except CheckpointException as error:
        rank, (failure, _) = min(error.failures.items(), key=lambda failure: failure[0])
        cause = _first_of_the_system(failure)
        what = f"Rank {rank} could not {verb} {folder}: {type(cause).__name__}: {cause}"
        raise DiagError(*_slug_and_hint(verb, what)) from error


def _first_of_the_system(error: BaseException) -> BaseException:
    """The OSError behind `error`, if there is one: a full disk reaches us as torch's complaint."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError):
            return behind
        behind = behind.__cause__ or behind.__context__
    return error


def _slug_and_hint(verb: str, what: str) -> tuple[str, str, str]:
    if verb == "write":
        return "checkpoint-io", what, "Is the disk full? The previous checkpoint is untouched."
    hint = "Load an earlier checkpoint. The models here may be half loaded."
    return "checkpoint-damaged", what, hint


def _damaged(path: Path, error: Exception) -> DiagError:
    first_line = str(error).split("\n", 1)[0]
    return DiagError(
        "checkpoint-damaged",
        f"{path} cannot be read: {type(error).__name__}: {first_line}",
        "Load an earlier checkpoint.",
    )


def _not_plain(owner: str, written: io.BytesIO, error: Exception) -> DiagError:
    written.seek(0)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(written)
    except Exception:  # it could not even be pickled
        names = []
    held = ", ".join(names) or f"what cannot be pickled ({error})"
    return DiagError(
        "state-not-plain",
        f"The state_dict of {owner} holds {held}; only running code from the file could load it.",
        "Return tensors, arrays, numbers, strings, lists and dicts. For a class you trust, call "
        "torch.serialization.add_safe_globals([…]) before saving and before loading.",
    )


def _numpy_allowed() -> contextlib.AbstractContextManager[object]:
    """Lets numpy's arrays and numbers through, if the script uses numpy; they run no code."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return contextlib.nullcontext()
    codes = set(numpy.typecodes["AllInteger"] + numpy.typecodes["AllFloat"] + "?")
    rebuild = numpy.empty(0).__reduce__()[0]
    number = numpy.float64(0).__reduce__()[0]
    dtypes = {type(numpy.dtype(code)) for code in codes}
    allowed: Any = [rebuild, number, numpy.ndarray, numpy.dtype, *dtypes]
    return torch.serialization.safe_globals(allowed)
