"""How findings speak of phases, and what to look at when one of them is slow."""

from __future__ import annotations

IS_SLOW = {
    "data": "waits longer for its data",
    "copy": "is slow in copying to the device",
    "forward": "is slow in forward",
    "backward": "is slow in backward",
    "optimizer": "is slow in the optimizer step",
    "host": "is slow in host code",
}
ARE_SLOW = {
    phase: words.replace("waits", "wait").replace("is slow", "are slow").replace("its", "their")
    for phase, words in IS_SLOW.items()
}
_DEVICE = {
    "cuda": (
        "If its batches are no larger than elsewhere, suspect the GPU: its clock and throttle "
        "reasons (nvidia-smi -q -d PERFORMANCE), another job on it, its PCIe slot or NUMA node."
    ),
    "cpu": (
        "If its batches are no larger than elsewhere, look at what shares its cores: other "
        "processes, too many threads, loader workers."
    ),
}


def slow_hint(phase: str, device: str) -> str:
    """What to look at on a rank that is slow in `phase`."""
    if phase == "data":
        return (
            "Compare this rank's loader with the others': the files of its shard, its disk, "
            "num_workers, and the cores its workers share."
        )
    if phase == "copy":
        return "Compare the sizes of the batches, use pin_memory=True, and look at the PCIe link."
    if phase == "host":
        return (
            "Look for Python that only this rank runs, or runs longer: logging, metrics, "
            ".item(), evaluation, saving; py-spy on its process names the line."
        )
    return _DEVICE.get(device, _DEVICE["cpu"])
