"""Places for weights, as users name them, and what each may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from diag.engine.amounts import bytes_of, free_on_host
from diag.errors import DiagError

Device = int | str
"""A GPU's number, or "cpu", "disk", "cuda:1", "meta" …"""

DISK = "disk"
_SHARE = 0.9  # of what is free; activations and the allocator's slack need the rest


def place_of(device: object) -> str:
    """The one name of a place: "cuda:0", "cpu", "disk" … for 0, "cuda", `torch.device("cpu")` …

    Raises:
        DiagError: there is no such kind of place.
    """
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return f"cuda:{device}"
    if device == DISK:
        return DISK
    parsed = _parsed(device)
    if parsed is None:
        raise DiagError(
            "unknown-device",
            f"{device!r} is no place for weights.",
            hint="Places are GPU numbers (0, 1, …), 'cpu', 'disk' and torch's device names.",
        )
    return f"cuda:{parsed.index or 0}" if parsed.type == "cuda" else str(parsed)


def _parsed(device: object) -> torch.device | None:
    if isinstance(device, torch.device):
        return device
    try:
        return torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        return None


def device_of(place: str) -> Device:
    """A place as Accelerate's device maps name it: GPUs by number."""
    kind, _, index = place.partition(":")
    return int(index) if kind == "cuda" else place


def computes(place: str) -> bool:
    """Whether layers held there also compute there, and not only wait."""
    return place not in ("cpu", DISK)


def require_present(places: Mapping[str, str]) -> None:
    """Raises DiagError if one of `places` (module → place) is a GPU this machine does not have."""
    present = torch.cuda.device_count()
    for module, place in places.items():
        kind, _, index = place.partition(":")
        if kind == "cuda" and int(index) >= present:
            raise DiagError(
                "no-such-device",
                f"The device map puts {module or 'the model'!r} on GPU {index}; this machine has "
                f"{present} of them.",
                hint="Use device_map='auto', or 'cpu' and 'disk'.",
            )


def rooms_of(max_memory: Mapping[Device, int | str] | None) -> dict[str, float]:
    """Bytes each place may hold, in the order they are filled: GPUs, CPU, disk.

    Args:
        max_memory: bytes, or "20GiB", "500MB"; places it leaves out hold nothing, but for the
            disk, which has no limit then. None: nine tenths of what is free now.

    Raises:
        DiagError: an amount or a place cannot be read.
    """
    given = _free() if max_memory is None else _stated(max_memory)
    computing = sorted((place for place in given if computes(place)), key=_order)
    waiting = [place for place in ("cpu", DISK) if place in given]
    rooms: dict[str, float] = {p: given[p] for p in (*computing, *waiting) if given[p]}
    return rooms if DISK in given else rooms | {DISK: math.inf}


def _order(place: str) -> tuple[str, int]:
    kind, _, index = place.partition(":")
    return kind, int(index or 0)


def _stated(max_memory: Mapping[Device, int | str]) -> dict[str, int]:
    return {place_of(device): bytes_of(amount) for device, amount in max_memory.items()}


def _free() -> dict[str, int]:
    gpus = {
        f"cuda:{i}": int(torch.cuda.mem_get_info(i)[0] * _SHARE)
        for i in range(torch.cuda.device_count())
    }
    return gpus | {"cpu": int(free_on_host() * _SHARE)}
