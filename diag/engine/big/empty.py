"""Models without weights: their structure alone, whatever their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def init_empty_weights(include_buffers: bool = False) -> AbstractContextManager[object]:
    """Inside it, modules are made with their parameters on the meta device: no memory, no values.

    Weights that are tied inside stay tied. It acts on the whole process: make no other module in
    another thread meanwhile.

    Args:
        include_buffers: empty the buffers too. Only for a model whose every buffer is in the
            checkpoint: what the constructor computed (positions, masks) is lost.
    """
    return torch.device("meta") if include_buffers else _emptied_parameters()


@contextmanager
def _emptied_parameters() -> Iterator[None]:
    register = nn.Module.register_parameter

    def register_emptied(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            _empty(param)

    nn.Module.register_parameter = register_emptied  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _empty(param: nn.Parameter) -> None:
    if param.device.type == "meta" or nn.parameter.is_lazy(param):
        return
    hollow = nn.Parameter(torch.empty_like(param, device="meta"), param.requires_grad)
    hollow.__class__ = type(param)
    hollow.__dict__.update(param.__dict__)
    # In place, so that whoever holds the parameter (a tied layer, an LSTM's list) holds it still.
    torch.utils.swap_tensors(param, hollow)  # type: ignore[no-untyped-call]
