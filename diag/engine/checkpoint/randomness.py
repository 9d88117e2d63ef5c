"""The random number generators of every rank: Python's, numpy's, torch's and the GPU's."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch

from diag.engine.process import Process

# What a rank holds: its generators' states by name, or {"seed": n} for a rank that had none.
Generators = dict[str, Any]


def capture(process: Process) -> Generators:
    """The states of this rank's generators. Numpy's only if the script uses numpy."""
    states: Generators = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        states["numpy"] = (kind, keys.tolist(), *rest)
    if process.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(process.device)
    return states


def restore(states: Generators, process: Process) -> None:
    """Put this rank's generators into `states`."""
    if "seed" in states:
        return _seed(states["seed"])
    random.setstate(_as_tuples(states["python"]))
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        import numpy as np

        np.random.set_state(tuple(states["numpy"]))
    if "cuda" in states and process.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], process.device)
    return None


def for_new_rank(rank: int, saved: Sequence[Generators]) -> Generators:
    """The generators of a rank that was not there when the checkpoint was saved.

    Where all ranks had the same states (one seed for the whole job), it joins them. Otherwise
    its seed is the first 8 bytes of SHA-256 over the states of saved rank `rank` modulo their
    number and over `rank`: the same each time, and unlike any other rank's.
    """
    digests = [_digest(states) for states in saved]
    if len(set(digests)) == 1:
        return saved[0]
    text = f"{digests[rank % len(digests)]} rank {rank}"
    return {"seed": int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")}


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed % 2**32)


def _digest(states: Generators) -> str:
    plain = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in states.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _as_tuples(state: Any) -> Any:
    version, words, gauss = state
    return (version, tuple(words), gauss)
