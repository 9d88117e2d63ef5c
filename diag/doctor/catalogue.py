"""All checks, in the order in which they are shown."""

from __future__ import annotations

from diag.doctor import checks_diag, checks_gpu, checks_host, checks_nccl, checks_torch
from diag.doctor.checks import Check

ALL: tuple[Check, ...] = (
    *checks_torch.CHECKS,
    *checks_gpu.CHECKS,
    *checks_nccl.CHECKS,
    *checks_host.CHECKS,
    *checks_diag.CHECKS,
)
