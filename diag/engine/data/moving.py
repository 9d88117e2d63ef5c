"""A batch on the device it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diag.engine.trees import mapped


def to_device(batch: Any, device: torch.device, non_blocking: bool) -> Any:
    """`batch` with its tensors, and whatever else has a `to`, on the device.

    Nested dicts, lists, tuples, named tuples and dataclasses are copied if anything in them moves.
    """
    return mapped(batch, lambda leaf: _moved(leaf, device, non_blocking), _movable)


def _movable(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "to") and not isinstance(value, type))


def _moved(value: Any, device: torch.device, non_blocking: bool) -> Any:
    if not _movable(value):
        return value
    try:
        return value.to(device, non_blocking=non_blocking)
    except TypeError:  # a `to` of somebody's own may take the device alone
        return value.to(device)
