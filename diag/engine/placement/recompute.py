"""Activation checkpointing of a model's blocks, in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn
from torch.utils.checkpoint import checkpoint

from diag.errors import DiagError


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Keep only the inputs of these blocks; backward computes the rest again.

    Names and state dicts stay as they are. A forward with effects (BatchNorm's statistics) has
    them twice.

    Raises:
        DiagError: there are none.
    """
    if not blocks:
        raise DiagError(
            "no-blocks",
            "activation_checkpointing recomputes a model's blocks, and this one has none that "
            "can be told.",
            hint="Name their class: FSDPOptions(wrap_classes=('Block',)).",
        )
    for block in blocks:
        forward = block.forward
        again = functools.partial(checkpoint, forward, use_reentrant=False)
        block.forward = functools.update_wrapper(again, forward)
