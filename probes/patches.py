"""Attributes replaced for the length of a session, and put back as they stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Function = Callable[..., Any]


@dataclass
class Patches:
    """Replaced attributes, put back in reverse order."""

    undo: list[Callable[[], None]] = field(default_factory=list)

    def wrap(self, owner: Any, name: str, make: Callable[[Function], Function]) -> None:
        """Replace owner.name by make(original). AttributeError if it is not there."""
        original = getattr(owner, name)
        inherited = isinstance(owner, type) and name not in vars(owner)
        # What stands in the class, not what looking it up yields: a C++ method put back as the
        # plain function it unwraps to would no longer bind its object.
        raw = vars(owner).get(name, original)
        wrapper = make(original)
        setattr(owner, name, wrapper)

        def restore() -> None:
            # Somebody may have wrapped our wrapper: theirs stays, ours has become inert.
            if vars(owner).get(name) is not wrapper:
                return
            if inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, raw)

        self.undo.append(restore)

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()
