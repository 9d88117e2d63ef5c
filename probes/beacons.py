"""When a rank's own gradients are done, announced by the arrival of one parameter's gradient.

A callback of autograd's engine runs when a backward's own work is done and before DDP waits, if
it was queued before DDP's finalizer, which is queued when the last bucket is ready. A hook on
the loss can queue it, but has to be put on every loss anew: as costly as all other seams
together. A hook stays on a parameter. It is believed once it has shone beside the loss's
hook in as many backwards as it takes to know that it shines in each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

TRUSTED_AFTER = 3  # backwards; a static graph's first one queues DDP's finalizer early


@dataclass(slots=True, eq=False)
class Beacon:
    """The parameter of one DDP whose gradient arrives first.

    Attributes:
        shone: backwards in which its gradient arrived.
        known: of those, how many had been counted when the last backward began.
        streak: backwards in a row in which it shone exactly once.
    """

    remove: Callable[[], None]
    shone: int = 0
    known: int = 0
    streak: int = 0

    def begin(self) -> bool:
        """A backward begins; whether this one needs no other announcer."""
        self.streak = self.streak + 1 if self.shone == self.known + 1 else 0
        self.known = self.shone
        return self.streak >= TRUSTED_AFTER


class Beacons:
    """One beacon per DDP.

    Args:
        announce: queues the engine callback; called within a backward.
    """

    def __init__(self, announce: Callable[[], object]) -> None:
        self.announce = announce
        self.usable = True  # False: a backward ran inside a backward, and may hold the beacon
        self._lit: weakref.WeakKeyDictionary[Any, Beacon] = weakref.WeakKeyDictionary()

    def begin(self, ddps: Iterable[Any]) -> bool:
        """A synchronizing backward of `ddps` begins; whether all of them announce its end."""
        if not self.usable:
            return False
        beacons = [self._lit.get(ddp) or self._light(ddp) for ddp in ddps]
        # Each must be told, so no short cut.
        trusted = [beacon is not None and beacon.begin() for beacon in beacons]
        return bool(trusted) and all(trusted)

    def put_out(self) -> None:
        """Take every hook away, for good or until the next `begin`."""
        for beacon in self._lit.values():
            beacon.remove()
        self._lit.clear()

    def nested(self) -> None:
        """A backward ran inside another one: what lies within is announced too early."""
        self.usable = False
        self.put_out()

    def _light(self, ddp: Any) -> Beacon | None:
        parameter = first_to_arrive(ddp)
        if parameter is None:
            return None
        beacon = Beacon(lambda: None)

        def arrived(_: Any) -> None:
            beacon.shone += 1
            self.announce()

        beacon.remove = parameter.register_post_accumulate_grad_hook(arrived).remove
        self._lit[ddp] = beacon
        return beacon


def first_to_arrive(ddp: Any) -> Any:
    """The last trainable parameter that DDP reduces; None where none is sure to get a gradient."""
    if getattr(ddp, "find_unused_parameters", True):
        return None
    ignored = getattr(ddp, "parameters_to_ignore", ())
    reduced = [p for n, p in ddp.named_parameters() if p.requires_grad and not skipped(n, ignored)]
    return reduced[-1] if reduced else None


def skipped(name: str, ignored: Iterable[str]) -> bool:
    return name in ignored or name.removeprefix("module.") in ignored
