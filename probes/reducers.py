"""Which DDP instances will synchronize in the next backward, and over which group."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class Reducer:
    """One DDP of this process.

    Attributes:
        name: by the order they were built in, which is the same on all ranks.
        size: ranks over which it reduces.
        num_bytes, dtype: what one synchronization reduces.
        asked: whether its last forward with gradients asked its backward to synchronize;
            None before one was seen.
    """

    name: str
    ddp: weakref.ref[Any]
    size: int
    num_bytes: int
    dtype: str
    asked: bool | None = None

    def expected(self) -> bool:
        """`require_forward_param_sync` is what DDP itself notes at the end of each forward; it
        serves where the forwards' ends are not seen."""
        ddp = self.ddp()
        if ddp is None:
            return False
        return bool(ddp.require_forward_param_sync) if self.asked is None else self.asked


class Reducers:
    """Every live DDP of this process."""

    def __init__(self) -> None:
        self._by_id: dict[int, Reducer] = {}
        self._built = 0

    def __bool__(self) -> bool:
        """Whether DDP has been seen at work."""
        return self._built > 0

    def built(self, ddp: Any) -> None:
        key = id(ddp)
        gone = weakref.ref(ddp, lambda _: self._by_id.pop(key, None))
        size, (num_bytes, dtype) = ddp.process_group.size(), gradients_of(ddp)
        self._by_id[key] = Reducer(f"ddp:{self._built}", gone, size, num_bytes, dtype)
        self._built += 1

    def forward_ended(self, ddp: Any, grad_enabled: bool) -> None:
        """A forward without gradients (a pseudo-label, a reference) takes back no request."""
        reducer = self._by_id.get(id(ddp))
        if grad_enabled and reducer is not None:
            reducer.asked = bool(ddp.require_forward_param_sync)

    def alive(self) -> list[Any]:
        return [ddp for r in self._by_id.values() if (ddp := r.ddp()) is not None]

    def expecting(self) -> list[Reducer]:
        """Those whose last forward asked its backward to synchronize."""
        return [r for r in self._by_id.values() if r.expected()]

    def name(self, ddp: Any) -> str:
        reducer = self._by_id.get(id(ddp))
        return reducer.name if reducer is not None else "ddp"


def gradients_of(module: Any) -> tuple[int, str]:
    """(bytes, dtype) of all trainable parameters; the dtype is that of the most bytes."""
    by_dtype: dict[str, int] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            dtype = str(parameter.dtype).removeprefix("torch.")
            by_dtype[dtype] = by_dtype.get(dtype, 0) + parameter.nbytes
    return sum(by_dtype.values()), max(by_dtype, key=by_dtype.__getitem__, default="")
