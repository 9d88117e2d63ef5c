"""Do something right after the script's own first import of a module.

The worker must not import torch itself: what a script sets before its `import torch`
(OMP_NUM_THREADS, TORCH_LOGS …) would come too late.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _Watcher:
    """A finder that finds nothing itself: it lets the others find `name`, and then waits for it."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then
        self._searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name or self._searching:
            return None
        self._searching = True  # find_spec below asks every finder again, this one too
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader)
        return spec

    def _wrap(self, loader: object) -> None:
        # Looking for a module need not load it (importlib.util.find_spec): only loading counts.
        # The loader is this spec's own, so its class and everyone else's loaders stay as they are.
        original = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # type: ignore[attr-defined]
            original(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._then()

        loader.exec_module = exec_module  # type: ignore[attr-defined]


def after_import(name: str, then: Callable[[], None]) -> None:
    """Call `then` once, as soon as top-level module `name` has been imported; now if it has been.

    Should the import fail, `then` waits for the next attempt.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Watcher(name, then))
