"""By which strategies this torch trains on the CPU; FSDP is not among torch 2.6's."""

from __future__ import annotations

import pytest
import torch

from diag.engine.torch_private import runs_fsdp

STRATEGIES = ("ddp", "fsdp") if runs_fsdp(torch.device("cpu")) else ("ddp",)
needs_fsdp = pytest.mark.skipif(
    "fsdp" not in STRATEGIES, reason=f"torch {torch.__version__} has no FSDP on the CPU"
)
