"""Each rank's share of a list: prompts, files, indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diag.engine.process import Process
from diag.errors import DiagError


def split_between_processes(process: Process, inputs: Any, apply_padding: bool = False) -> Any:
    """This rank's contiguous part of `inputs`; the first ranks take one more where it does not divide.

    Nothing is sent and `inputs` stays as it is.

    Args:
        inputs: a list, tuple, tensor, array, anything that can be sliced, a datasets.Dataset; or
            a dict of such, nested, all equally long.
        apply_padding: repeat the last element so that all ranks have equally many; cut the
            gathered results to `len(inputs)`.

    Raises:
        DiagError: a dict of unequal lengths; something without a length.
    """
    if not process.distributed:
        return inputs
    length = _length(inputs)
    share, extra = divmod(length, process.world_size)
    start = process.rank * share + min(process.rank, extra)
    stop = start + share + (process.rank < extra)
    missing = share + (extra > 0) - (stop - start) if apply_padding and length else 0
    return _part(inputs, start, stop, missing)


def _length(inputs: Any) -> int:
    if isinstance(inputs, Mapping):
        lengths = {key: _length(value) for key, value in inputs.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key!r}: {length}" for key, length in lengths.items())
            raise DiagError(
                "uneven-lists",
                f"split_between_processes cannot split lists of different lengths ({listed}).",
            )
        return next(iter(lengths.values()), 0)
    if isinstance(inputs, str) or not hasattr(inputs, "__len__"):
        raise DiagError(
            "cannot-split",
            f"split_between_processes takes a list, tuple, tensor or dict of them, "
            f"not a {type(inputs).__name__}.",
        )
    return len(inputs)


def _part(inputs: Any, start: int, stop: int, missing: int) -> Any:
    """inputs[start:stop] and the last element `missing` times more."""
    if isinstance(inputs, Mapping):
        return {key: _part(value, start, stop, missing) for key, value in inputs.items()}
    rows = [*range(start, stop), *[len(inputs) - 1] * missing]
    if hasattr(inputs, "select") and hasattr(inputs, "column_names"):  # datasets.Dataset
        return inputs.select(rows)
    if hasattr(inputs, "iloc"):  # pandas
        return inputs.iloc[rows]
    if not missing:
        return inputs[start:stop]
    if hasattr(inputs, "shape"):  # tensors and arrays take a list of rows
        return inputs[rows]
    repeated = [inputs[row] for row in rows]
    return tuple(repeated) if isinstance(inputs, tuple) else repeated
