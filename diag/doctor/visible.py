"""Which GPUs CUDA_VISIBLE_DEVICES leaves visible, by CUDA's own rules.

Source: CUDA C++ Programming Guide, "CUDA Environment Variables": entries are indices or the
beginning of a UUID; entries from the first invalid one on are ignored; an empty value hides
all devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diag.doctor.facts import Facts, Gpu, Missing, Setting


@dataclass(frozen=True)
class Visible:
    """NVML indices that remain visible, and the entry at which CUDA stops reading, if any."""

    indices: tuple[int, ...]
    invalid: str | None = None


def visible_indices(facts: Facts) -> Visible:
    """Of the GPUs that NVML lists; none where NVML has no answer."""
    gpus = () if isinstance(facts.nvml, Missing) else facts.nvml.gpus
    setting = visible_setting(facts)
    return all_of(gpus) if setting is None else select(setting.value, gpus)


def visible_setting(facts: Facts) -> Setting | None:
    if isinstance(facts.settings, Missing):
        return None
    return facts.settings.get("CUDA_VISIBLE_DEVICES")


def all_of(gpus: Sequence[Gpu]) -> Visible:
    return Visible(tuple(g.index for g in gpus))


def select(value: str, gpus: Sequence[Gpu]) -> Visible:
    """What `value` of CUDA_VISIBLE_DEVICES selects."""
    chosen: list[int] = []
    for entry in (e.strip() for e in value.split(",")) if value.strip() else ():
        index = _find(entry, gpus)
        if index is None or index in chosen:
            return Visible(tuple(chosen), entry)
        chosen.append(index)
    return Visible(tuple(chosen))


def _find(entry: str, gpus: Sequence[Gpu]) -> int | None:
    """The GPU an entry names. A MIG instance counts as the GPU it may be part of: NVML's list
    of instances is not among the facts, so the first GPU with MIG on stands for it."""
    if entry.isdecimal():
        return next((g.index for g in gpus if str(g.index) == (entry.lstrip("0") or "0")), None)
    if entry.startswith("MIG-"):
        return next((g.index for g in gpus if g.mig), None)
    matching = [g.index for g in gpus if entry and (g.uuid or "").startswith(entry)]
    return matching[0] if len(matching) == 1 else None
