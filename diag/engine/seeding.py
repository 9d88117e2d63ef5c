"""One seed for every random number generator a training draws from."""

from __future__ import annotations

import os
import random

import torch

from diag.engine.process import rank_and_world_size


def set_seed(seed: int, device_specific: bool = False, deterministic: bool = False) -> int:
    """Seed Python's, numpy's and torch's generators, those of all devices included.

    Args:
        seed: the same on every rank.
        device_specific: each rank takes `seed` + its rank, so that dropout and augmentation
            differ between the ranks. Build the model before: its initialization must not.
        deterministic: forbid torch operations that have no deterministic implementation, and let
            cuDNN choose by rule, not by measurement. Slower. Call it before the first CUDA work.

    Returns:
        The seed this rank took.
    """
    if device_specific:
        seed += rank_and_world_size()[0]
    random.seed(seed)
    _seed_numpy(seed)
    torch.manual_seed(seed)  # every device's, now or when it is first used
    if deterministic:
        # cuBLAS reads it when its handle is made; without it torch refuses its first matmul.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return seed


def _seed_numpy(seed: int) -> None:
    import numpy

    numpy.random.seed(seed % 2**32)  # it takes 32 bits
