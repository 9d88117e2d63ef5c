"""Which DDP instances will synchronize in the next backward, and over which group."""

from __future__ import annotations

import weakref
from typing import Any


class Reducers:
    """Every DDP of this process, by the order it was built in (the same on all ranks)."""

    def __init__(self) -> None:
        self._ddps: dict[str, weakref.ref[Any]] = {}
        self._asked: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def __bool__(self) -> bool:
        """Whether DDP has been seen at work."""
        return bool(self._ddps)

    def built(self, ddp: Any) -> None:
        self._ddps[f"ddp:{len(self._ddps)}"] = weakref.ref(ddp)

    def forward_ended(self, ddp: Any, grad_enabled: bool) -> None:
        """A forward without gradients (a pseudo-label, a reference) takes back no request."""
        if grad_enabled:
            self._asked[ddp] = bool(ddp.require_forward_param_sync)

    def alive(self) -> list[Any]:
        return [ddp for ref in self._ddps.values() if (ddp := ref()) is not None]

    def expecting(self) -> list[tuple[str, Any]]:
        """(name, process group) of each DDP whose last forward asked its backward to synchronize.

        `require_forward_param_sync` is what DDP itself notes at the end of each forward; it
        serves where the forwards' ends are not seen.
        """
        found = []
        for name, ref in self._ddps.items():
            ddp = ref()
            if ddp is not None and self._asked.get(ddp, ddp.require_forward_param_sync):
                found.append((name, ddp.process_group))
        return found

    def name(self, ddp: Any) -> str:
        return next((name for name, ref in self._ddps.items() if ref() is ddp), "ddp")
