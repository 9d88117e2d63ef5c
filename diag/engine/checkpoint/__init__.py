"""Checkpoints: all or nothing, bit-equal on resume, loadable on another number of ranks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diag.engine.checkpoint.directories import Naming
from diag.engine.checkpoint.manifest import MANIFEST, Manifest
from diag.engine.checkpoint.parts import Parts, Stateful, check_stateful

if TYPE_CHECKING:
    from diag.engine.checkpoint.export import get_state_dict, save_model
    from diag.engine.checkpoint.load import Loaded, load_state
    from diag.engine.checkpoint.save import save_state
    from diag.engine.checkpoint.weights import unwrap_model

__all__ = [
    "MANIFEST",
    "Loaded",
    "Manifest",
    "Naming",
    "Parts",
    "Stateful",
    "check_stateful",
    "get_state_dict",
    "load_state",
    "save_model",
    "save_state",
    "unwrap_model",
]
# Imported when first asked for, since torch.distributed.checkpoint takes seconds to import.
_LATER = {
    "Loaded": "load",
    "get_state_dict": "export",
    "load_state": "load",
    "save_model": "export",
    "save_state": "save",
    "unwrap_model": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
