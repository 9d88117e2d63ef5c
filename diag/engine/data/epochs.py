"""Which epoch a pass is, told to whatever of a loader wants to know it."""

from __future__ import annotations

from typing import Any


class Listeners:
    """The samplers and datasets of a loader that have a `set_epoch`."""

    def __init__(self, *parts: Any) -> None:
        able = {id(part): part for part in parts if callable(getattr(part, "set_epoch", None))}
        self._parts = list(able.values())
        self._known = [_epoch_of(part) for part in self._parts]

    def set_by_user(self) -> int | None:
        """The epoch a script has set on one of them by itself since `tell`."""
        for part, known in zip(self._parts, self._known, strict=True):
            epoch = _epoch_of(part)
            if epoch is not None and epoch != known:
                return epoch
        return None

    def tell(self, epoch: int) -> None:
        for part in self._parts:
            part.set_epoch(epoch)
        self._known = [_epoch_of(part) for part in self._parts]


def _epoch_of(part: Any) -> int | None:
    epoch = getattr(part, "epoch", None)
    return epoch if isinstance(epoch, int) else None
