"""Amounts of memory, as users write them, as they are read, and as the host has them."""

from __future__ import annotations

import re

from diag.doctor.facts_cgroup import memory_limit
from diag.errors import DiagError

_SCALES = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}} | {
    f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)
}


def bytes_of(amount: object) -> int:
    """Bytes in 1024, "20GiB" or "1.5 GB".

    Raises:
        DiagError: it is no amount of memory.
    """
    text = str(amount).strip().upper()
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]I?B|B|)", text)
    if match is None:
        raise DiagError(
            "bad-amount",
            f"{amount!r} is no amount of memory.",
            hint="Write bytes (1024) or a unit: '20GiB', '500MB'.",
        )
    return int(float(match[1]) * _SCALES[match[2]])


def in_words(num_bytes: float) -> str:
    """Bytes in the binary unit in which they are below 1000: "1.46 GiB"."""
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while num_bytes >= 999.5 and (larger := next(units, None)):
        num_bytes, unit = num_bytes / 1024, larger
    return f"{num_bytes:.3g} {unit}"


def free_on_host() -> int:
    """Bytes free in this machine's memory, or in the container's, past whose limit we are killed."""
    import psutil  # here, since most trainings never ask

    group = memory_limit()
    allowed = [max(0, group[0] - group[1])] if group else []
    return int(min([psutil.virtual_memory().available, *allowed]))
