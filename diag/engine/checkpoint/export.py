"""A model's weights alone: as one dict on the CPU, or as files that other tools read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diag.engine.amounts import bytes_of
from diag.engine.checkpoint.directories import sync
from diag.engine.checkpoint.labelled import is_checkpoint
from diag.engine.checkpoint.together import PATIENCE_S, meet, on_main
from diag.engine.checkpoint.weights import model_state, tied_to, unwrap_model
from diag.engine.placement.shards import is_sharded
from diag.engine.process import Process
from diag.errors import DiagError

_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_INCOMPLETE = ".incomplete"


@is_checkpoint
def get_state_dict(
    model: nn.Module,
    process: Process,
    every_rank: bool = False,
    patience_s: float = PATIENCE_S,
) -> dict[str, Any]:
    """A copy of the model's whole state on the CPU, under the names of the unwrapped model.

    Collective if the model is sharded: one tensor after the other is gathered, so a device holds
    one whole tensor at a time. Otherwise no rank waits for another.

    Args:
        every_rank: all ranks get it; else rank 0 does, and the others get an empty dict.

    Raises:
        DiagError: the model is sharded and some rank did not come.
    """
    state = model_state(model)
    if any(map(is_sharded, state.values())):
        meet(process, "get_state_dict", patience_s)
    wanted = every_rank or process.is_main
    tied = tied_to(model)
    copied: dict[str, Any] = {}
    for name, value in state.items():
        if wanted and tied.get(name) in copied:
            copied[name] = copied[tied[name]]
        elif name not in tied or tied[name] not in state:
            value = value.full_tensor() if is_sharded(value) else value
            if wanted:
                copied[name] = _on_cpu(value)
    return copied


@is_checkpoint
def save_model(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    process: Process,
    max_shard_size: int | str = "10GB",
    safe_serialization: bool = True,
    patience_s: float = PATIENCE_S,
) -> None:
    """Write the model's weights as Hugging Face lays them out; rank 0 writes.

    `model.safetensors`, or `model-00001-of-00003.safetensors` … with `model.safetensors.index.json`
    where they exceed `max_shard_size`. Tied weights are written once. What an earlier save left
    there is replaced: a reader finds the old weights, the new ones or none, never both mixed.
    Collective if the model is sharded.

    Args:
        max_shard_size: bytes, or `"5GB"`, `"500MB"`, `"2GiB"`. A larger tensor gets its own file.
        safe_serialization: False writes `pytorch_model.bin` by `torch.save`.

    Raises:
        DiagError: safetensors is not installed; the directory is a file; a state that is no
            tensor; an unreadable size.
    """
    limit = bytes_of(max_shard_size)
    form = _safetensors_form() if safe_serialization else _BIN
    sharded = any(map(is_sharded, model_state(model).values()))
    state = get_state_dict(model, process, patience_s=patience_s)

    def write() -> None:
        dropped = drop_tied(state, unwrap_model(model, keep_torch_compile=False))
        _write(Path(save_directory).expanduser(), state, dropped, limit, form)

    if sharded:
        on_main(process, write)
    elif process.is_main:
        write()


def drop_tied(state: dict[str, Any], model: nn.Module) -> dict[str, str]:
    """Remove all names but one of each tied tensor; dropped name → kept name.

    A name the model declares as tied (`_tied_weights_keys`) goes, since its own loading ties it
    again; else the first name stays.
    """
    declared = set(getattr(model, "_tied_weights_keys", None) or ())
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            names.setdefault(id(value), []).append(name)
    dropped: dict[str, str] = {}
    for tied in names.values():
        kept = next((name for name in tied if name not in declared), tied[0])
        dropped |= {name: kept for name in tied if name != kept}
    for name in dropped:
        del state[name]
    return dropped


def split(state: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names cut into files of at most `limit` bytes each; a larger tensor has one to itself."""
    files: list[list[str]] = []
    current: list[str] = []
    room = limit
    for name, tensor in state.items():
        if tensor.nbytes > limit:
            files.append([name])
            continue
        if tensor.nbytes > room:
            files.append(current)
            current, room = [], limit
        current.append(name)
        room -= tensor.nbytes
    return [*files, current] if current or not files else files


# -- files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """A file format: `stem.ending`, and who writes it: (tensors, path, metadata)."""

    stem: str
    ending: str
    write: Callable[[dict[str, Tensor], Path, dict[str, str]], None]


_BIN = _Form("pytorch_model", "bin", lambda tensors, path, _: torch.save(tensors, path))


def _safetensors_form() -> _Form:
    library = _safetensors()

    def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        # Transformers reads the format's name before anything else.
        library.save_file(tensors, path, metadata={"format": "pt"} | metadata)

    return _Form("model", "safetensors", write)


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise DiagError(
            "no-safetensors",
            "Writing safetensors needs the package safetensors, which is not installed.",
            "pip install 'diag[safetensors]', or safe_serialization=False.",
        ) from error
    return safetensors.torch


def _write(
    directory: Path, state: dict[str, Any], dropped: dict[str, str], limit: int, form: _Form
) -> None:
    _check_writable(directory, state, form)
    directory.mkdir(parents=True, exist_ok=True)
    for left in _weights(directory, form, _INCOMPLETE):
        left.unlink()
    parts = split(state, limit)
    names = [_file_name(form, index, len(parts)) for index in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        tensors = {key: state[key].contiguous() for key in part}
        tied = {key: kept for key, kept in dropped.items() if kept in tensors}
        form.write(tensors, directory / (name + _INCOMPLETE), tied)
        sync(directory / (name + _INCOMPLETE))
    # Without its index a set of shards is no model, so nobody reads a mixture.
    index = directory / f"{form.stem}.{form.ending}.index.json"
    index.unlink(missing_ok=True)
    for name in names:
        os.replace(directory / (name + _INCOMPLETE), directory / name)
    for stale in _weights(directory, form):
        if stale.name not in names:
            stale.unlink()
    if len(parts) > 1:
        _write_index(index, state, dict(zip(names, parts, strict=True)))


def _write_index(path: Path, state: Mapping[str, Tensor], files: dict[str, list[str]]) -> None:
    facts = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {key: name for name, keys in files.items() for key in keys},
    }
    temporary = path.with_name(path.name + _INCOMPLETE)
    temporary.write_text(json.dumps(facts, indent=2) + "\n")
    sync(temporary)
    os.replace(temporary, path)


def _check_writable(directory: Path, state: Mapping[str, Any], form: _Form) -> None:
    if directory.exists() and not directory.is_dir():
        raise DiagError(
            "not-a-directory", f"{directory} is a file; save_model writes into a directory."
        )
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise DiagError(
            "state-not-tensors",
            f"The model's state holds {other[0]}, which is no tensor, so no file of weights can.",
            "torch.save(engine.get_state_dict(model), …) saves it whole.",
        )


def _weights(directory: Path, form: _Form, suffix: str = "") -> list[Path]:
    """The files of weights of this format that lie in `directory`."""
    return [
        path
        for path in directory.glob(f"{form.stem}*.{form.ending}{suffix}")
        if _SHARD.sub("", path.name) == f"{form.stem}.{form.ending}{suffix}"
    ]


def _file_name(form: _Form, index: int, count: int) -> str:
    shard = f"-{index + 1:05d}-of-{count:05d}" if count > 1 else ""
    return f"{form.stem}{shard}.{form.ending}"


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
