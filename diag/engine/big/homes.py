"""Where each tensor of a model lives between forwards, and where each of its modules computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diag.engine.big.layout import ModelTensor, Site
from diag.engine.big.plan import computing_in
from diag.engine.big.sizes import DISK, computes


@dataclass(frozen=True)
class Homes:
    """
    Attributes:
        start: the place where the model's forward begins.
        of: the place of each tensor, by any of its names.
        sites: the modules whose forward needs tensors, and where each computes.
    """

    start: str
    of: Mapping[str, str]
    sites: Sequence[tuple[Site, str]]

    @property
    def are_spread(self) -> bool:
        """Whether a forward has to move anything."""
        return len({*self.of.values(), *(place for _, place in self.sites)}) > 1

    @property
    def have_waiting(self) -> bool:
        """Whether a weight lives where nothing computes."""
        return not set(self.of.values()) <= {place for _, place in self.sites}


def find_homes(
    tensors: Sequence[ModelTensor], sites: Sequence[Site], places: Mapping[str, str]
) -> Homes:
    """Homes by a device map.

    A module computes on the GPU of its weights, or, if they wait on the CPU or the disk, where
    the model begins. A weight with several names lives at the fastest place one of them has; a
    buffer where the first module that uses it computes.

    Args:
        places: the device map's place for every tensor name.
    """
    start = next(iter(computing_in(dict.fromkeys(places.values()))), "cpu")
    computing = [
        (site, next((p for p in (places[n] for n, _ in site.slots()) if computes(p)), start))
        for site in sites
    ]
    used_at: dict[str, str] = {}
    for site, place in computing:
        for name, _ in site.slots():
            used_at.setdefault(name, place)
    homes: dict[str, str] = {}
    for tensor in tensors:
        named = [places[name] for name in tensor.names]
        home = _used_first(tensor, used_at) if tensor.is_buffer else min(named, key=_slowness)
        homes |= dict.fromkeys(tensor.names, home)
    return Homes(start, homes, computing)


def _used_first(tensor: ModelTensor, used_at: Mapping[str, str]) -> str:
    return next(used_at[name] for name in tensor.names if name in used_at)


def _slowness(place: str) -> int:
    return (computes(place), place == "cpu", place == DISK).index(True)
