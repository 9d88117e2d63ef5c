"""diag: where did the speed-up go?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diag.labels import samples, span

if TYPE_CHECKING:
    from diag.engine.big import (
        infer_device_map,
        init_empty_weights,
        load_checkpoint_and_dispatch,
    )
    from diag.engine.engine import Engine
    from diag.engine.logs import get_logger
    from diag.engine.options import DDPOptions, FSDPOptions
    from diag.engine.seeding import set_seed

__all__ = [
    "DDPOptions",
    "Engine",
    "FSDPOptions",
    "__version__",
    "get_logger",
    "infer_device_map",
    "init_empty_weights",
    "load_checkpoint_and_dispatch",
    "samples",
    "set_seed",
    "span",
]
__version__ = "0.1.0"

# Imported when first asked for: they need torch, and the command line must start without it.
_ENGINE = {
    "DDPOptions": "diag.engine.options",
    "Engine": "diag.engine.engine",
    "FSDPOptions": "diag.engine.options",
    "get_logger": "diag.engine.logs",
    "infer_device_map": "diag.engine.big",
    "init_empty_weights": "diag.engine.big",
    "load_checkpoint_and_dispatch": "diag.engine.big",
    "set_seed": "diag.engine.seeding",
}


def __getattr__(name: str) -> Any:
    if name not in _ENGINE:
        raise AttributeError(f"module 'diag' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_ENGINE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
