"""Which module's call is "the forward", found without a hook on every module.

After the first backward all trainable modules are alive: those without a parent are the roots.
Their classes' `__call__` is labelled (the class, never the instance: hooks on instances travel
with deepcopy and torch.save). If a step then passes in which no root was called, as with
trainers that call a child of what they hold, the search descends one level.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.compiler import is_compiling

from diag.probes import current

MAX_LEVELS = 5
# Their forward calls the user's model; an evaluation often calls that model directly.
WRAPPERS = ("module", "_orig_mod")


def live_modules() -> list[torch.nn.Module]:
    """Every live module. By exact type: isinstance would run user code on lazy proxies."""
    return [o for o in gc.get_objects() if issubclass(type(o), torch.nn.Module)]


def trainable_roots(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Modules that no other one contains and that have a trainable parameter."""
    everything = list(modules)
    children = {id(c) for m in everything for c in m.children()}
    return [m for m in everything if id(m) not in children and _trainable(m)]


def _trainable(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


class ForwardRoots:
    """The search for the module classes whose calls are the forward.

    Args:
        label: patches a class so that its calls are labelled.
    """

    def __init__(self, label: Callable[[type], None]) -> None:
        self._label = label
        self.labelled: set[type] = set()
        self._level: list[torch.nn.Module] = []
        self.levels = 0
        self.settled = False

    def first_step(self) -> None:
        roots = trainable_roots(live_modules())
        self._descend_to(roots)
        if not _compiling_in_use(roots):
            # A model evaluated without its DDP wrapper must be seen too.
            self._label_all(wrapped(roots))

    def after_step(self, forward_seen: bool) -> bool:
        """One more step is complete; whether the search is over."""
        if not self.settled and (forward_seen or self.levels >= MAX_LEVELS):
            self.settled = True
            self._level = []
        if not self.settled:
            self._descend_to([c for m in self._level for c in m.children() if _trainable(c)])
        return self.settled

    def _descend_to(self, modules: list[torch.nn.Module]) -> None:
        self.levels += 1
        self._level = modules
        self._label_all(modules)

    def _label_all(self, modules: Iterable[torch.nn.Module]) -> None:
        for kind in {type(m) for m in modules} - self.labelled:
            self._label(kind)
            self.labelled.add(kind)


def wrapped(roots: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """What DDP and torch.compile among `roots` hold inside."""
    inner = [getattr(m, name, None) for m in roots for name in WRAPPERS if name in m._modules]
    return [m for m in inner if isinstance(m, torch.nn.Module)]


def _compiling_in_use(roots: Iterable[torch.nn.Module]) -> bool:
    """Whether Dynamo guards may depend on these classes: then only the outermost is touched."""
    return any(
        hasattr(m, "_orig_mod") or m._compiled_call_impl is not None
        for root in roots
        for m in root.modules()
    )


def wrap_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Label a module class's `__call__` as the forward, where it is the outermost."""

    @functools.wraps(original)
    def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        session = None if is_compiling() else current.session
        if session is None or session.in_forward:
            return original(module, *args, **kwargs)
        depth = session.begin_forward(module)
        if depth is None:
            return original(module, *args, **kwargs)
        try:
            return original(module, *args, **kwargs)
        finally:
            session.end_forward(depth)

    return call
