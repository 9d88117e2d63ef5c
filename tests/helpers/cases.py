"""Cases for detectors: a panel with a planted cause, accounted for as a real run is.

Times in ms. The ranks' ordinary noise is 1% of each phase unless said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports.account import account
from diag.reports.findings.case import Case
from diag.reports.panel import Panel
from diag.reports.steady import steady

F64 = npt.NDArray[np.float64]
EXPOSED = PHASES.index("exposed_comm")
BASE_MS = {
    "data": 0.4, "copy": 0.1, "forward": 20.0, "backward": 40.0, "optimizer": 0.6, "host": 0.4,
}  # fmt: skip


def phase(name: str) -> int:
    return PHASES.index(name)


def local_ms(ranks: int, steps: int, seed: int = 0, noise: float = 0.01) -> F64:
    """[R, S, 7] local phases of equal ranks; exposed_comm is 0."""
    rng = np.random.default_rng(seed)
    times = np.zeros((ranks, steps, len(PHASES)))
    for name in LOCAL_PHASES:
        times[:, :, phase(name)] = BASE_MS[name]
    return times * rng.lognormal(0, noise, times.shape)


def panel(
    local: F64,
    transfer_ms: float = 0.2,
    *,
    samples: float = 32,
    flags: npt.ArrayLike = 0,
    tokens: npt.ArrayLike = np.nan,
) -> Panel:
    """Synchronous training: every step ends on all ranks when the slowest is done."""
    ranks, steps, _ = local.shape
    phases = (local * 1e6).astype(np.int64)
    phases[:, :, EXPOSED] = 0
    own = phases.sum(axis=2)
    phases[:, :, EXPOSED] = own.max(axis=0) - own + int(transfer_ms * 1e6)
    end = np.cumsum(phases.sum(axis=2), axis=1) + 10**12
    return Panel(
        ranks=tuple(range(ranks)),
        index=np.arange(steps),
        start_ns=end - phases.sum(axis=2),
        end_ns=end,
        phases_ns=phases,
        samples=np.full((ranks, steps), float(samples)),
        tokens=np.broadcast_to(np.asarray(tokens, float), (ranks, steps)).copy(),
        flags=np.broadcast_to(np.asarray(flags, np.int64), (ranks, steps)).copy(),
        probe_ns=np.full((ranks, steps), 20_000),
    )


@dataclass(frozen=True)
class Planted:
    """Builds the Case of a run; `baseline=False` makes it an estimate.

    base: [1, S, 7] the baseline's local phases, where not the ordinary ones.
    """

    local: F64
    transfer_ms: float = 0.2
    baseline: bool = True
    panel_options: dict[str, Any] = field(default_factory=dict)
    case_options: dict[str, Any] = field(default_factory=dict)
    base: F64 | None = None
    base_options: dict[str, Any] = field(default_factory=dict)

    def case(self) -> Case:
        run = panel(self.local, self.transfer_ms, **self.panel_options)
        chosen = steady(run)
        alone = local_ms(1, 80, seed=99) if self.base is None else self.base
        base = panel(alone, 0.0, **self.base_options) if self.baseline else None
        accounting = (
            account(
                run,
                base,
                used=chosen.used,
                baseline_used=None if base is None else steady(base).used,
            )
            if chosen.used.any()
            else None
        )
        return Case(
            accounting=accounting,
            panel=run,
            used=chosen.used,
            world_size=run.num_ranks,
            excluded=chosen.excluded,
            **self.case_options,
        )


def findings_of(detector: Any, local: F64, transfer_ms: float = 0.2, **options: Any) -> Any:
    """What `detector` says about a run with these local phases."""
    return detector(Planted(local, transfer_ms, **options).case())
