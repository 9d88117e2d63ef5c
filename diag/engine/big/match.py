"""Which tensor of a checkpoint fills which of a model; what is missing, left over or misshapen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from diag.engine.big.devicemap import some_of
from diag.engine.big.layout import ModelTensor
from diag.engine.big.safefile import Stored
from diag.errors import DiagError

_log = logging.getLogger(__name__)


def match(
    tensors: Sequence[ModelTensor], stored: Mapping[str, Stored], strict: bool
) -> dict[str, Stored]:
    """The stored value of each model tensor, by its first name.

    A tied weight is filled by whichever of its names the checkpoint has. What the checkpoint
    lacks keeps the model's own value if it has one; what the model lacks is left. Both are said.

    Raises:
        DiagError: a tensor without a value stays without one, a shape differs, or `strict` and
            the two do not have the same names.
    """
    found = {
        tensor.name: stored[name]
        for tensor in tensors
        for name in reversed(tensor.names)
        if tensor.is_saved and name in stored
    }
    _require_same_shapes(tensors, found)
    missing = [tensor for tensor in tensors if tensor.is_saved and tensor.name not in found]
    known = {name for tensor in tensors if tensor.is_saved for name in tensor.names}
    unexpected = [name for name in stored if name not in known]
    _require_values([t for t in tensors if t.name not in found], unexpected)
    said = _differences([tensor.name for tensor in missing], unexpected)
    if said and strict:
        raise DiagError(
            "checkpoint-mismatch", f"{said}.", hint="strict=False loads what fits and says this."
        )
    if said:
        _log.warning("%s.", said)
    return found


def _require_same_shapes(tensors: Sequence[ModelTensor], found: Mapping[str, Stored]) -> None:
    wrong = [
        f"{tensor.name!r} is {tuple(tensor.tensor.shape)} in the model and {held.shape} stored"
        for tensor in tensors
        if (held := found.get(tensor.name)) and held.shape != tuple(tensor.tensor.shape)
    ]
    if wrong:
        raise DiagError(
            "shape-mismatch",
            f"{len(wrong)} tensor(s) of another shape: {'; '.join(wrong[:5])}.",
            hint="The checkpoint is of another model, or of another size of this one.",
        )


def _require_values(unfilled: Sequence[ModelTensor], unexpected: Sequence[str]) -> None:
    empty = [tensor for tensor in unfilled if tensor.tensor.is_meta]
    if lost := [tensor.name for tensor in empty if not tensor.is_saved]:
        raise DiagError(
            "empty-buffers",
            f"No checkpoint holds {some_of(lost)}, and the model was made without their values.",
            hint="Make it under init_empty_weights(include_buffers=False).",
        )
    if empty:
        raise DiagError(
            "missing-weights",
            f"The checkpoint has no value for {some_of([tensor.name for tensor in empty])}"
            + (f"; it has {some_of(unexpected)} that the model lacks." if unexpected else "."),
            hint="The names must agree, prefixes such as 'module.' or 'model.' included.",
        )


def _differences(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    parts = []
    if missing:
        parts.append(f"The checkpoint lacks {some_of(missing)}: the model's own values stay")
    if unexpected:
        parts.append(f"The model has no place for {some_of(unexpected)} of the checkpoint")
    return ". ".join(parts)
