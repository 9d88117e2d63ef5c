"""Calls of a model's methods led through the DDP beside it, so that their gradients are averaged.

Importing this imports torch's compiler: it must know what to leave alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.nn.parallel import DistributedDataParallel

from diag.engine import torch_private

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _uncompiled(function: _Function, with_callees: bool = True) -> _Function:
    disable: Any = torch.compiler.disable
    return cast(_Function, disable(function, recursive=with_callees))


_before_forward = _uncompiled(torch_private.ddp_before_forward)
_after_forward = _uncompiled(torch_private.ddp_after_forward)
_forward_over = _uncompiled(torch_private.ddp_forward_over)


class Through:
    """Leads calls through DDP. A method that calls the model is one forward, not two."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self.ddp = ddp
        self.inside = False
        self.learnt = not ddp.static_graph

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.inside:
            return method(*args, **kwargs)
        asked = self.ddp.require_backward_grad_sync
        if not self.learnt and torch.is_grad_enabled():
            # DDP aborts where a static graph's first backward does not synchronize. Averaging
            # an earlier micro-batch's gradients one time more changes nothing.
            self.ddp.require_backward_grad_sync = self.learnt = True
        self.inside = True
        try:
            args, kwargs = _before_forward(self.ddp, args, kwargs)
            return _after_forward(self.ddp, method(*args, **kwargs))
        finally:
            self.inside = False
            _forward_over()
            self.ddp.require_backward_grad_sync = asked

    # The call itself is left alone, the user's method within it is compiled.
    __call__ = _uncompiled(__call__, with_callees=False)

    def __reduce__(self) -> tuple[type[Past], tuple[()]]:
        return Past, ()  # a copy of the model (an average of it, a file) is a plain model


class Past:
    """What `Through` becomes in a copy."""

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)
