"""Checkpoints: all or nothing, bit-equal on resume, loadable on another number of ranks."""

from __future__ import annotations

from diag.engine.checkpoint.directories import Naming
from diag.engine.checkpoint.export import get_state_dict, save_model
from diag.engine.checkpoint.load import Loaded, load_state
from diag.engine.checkpoint.manifest import MANIFEST, Manifest
from diag.engine.checkpoint.parts import Parts, Stateful, check_stateful
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
