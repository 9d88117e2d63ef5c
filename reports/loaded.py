"""A run with its arrays and steady steps, and what its facts say, tolerant of missing ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from diag.record.reader import Run
from diag.record.schema import PHASES
from diag.reports.columns import release_to_release_ns
from diag.reports.findings.case import NS_PER_MS
from diag.reports.findings.unsupported_topology import is_unsupported
from diag.reports.load import load_panel
from diag.reports.model import RankRow, StepSeries
from diag.reports.observations import peak_memory
from diag.reports.panel import Bool, Panel
from diag.reports.steady import Steady, steady
from diag.reports.throughput import Unit, work_per_step

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Loaded:
    """What explaining needs of one run."""

    run: Run
    panel: Panel
    steady: Steady

    @property
    def used(self) -> Bool:
        return self.steady.used

    @property
    def has_steps(self) -> bool:
        return bool(self.used.any())

    @property
    def stated_samples(self) -> float | None:
        """--samples-per-step, of all ranks together."""
        value = self.run.facts.get("samples_per_step")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    @property
    def device(self) -> str:
        return str(self.run.facts.get("device") or UNKNOWN)

    @property
    def is_rehearsal(self) -> bool:
        return bool(self.run.facts.get("rehearsal"))

    @property
    def cores(self) -> int | None:
        """Of a node."""
        value = self.run.facts.get("cores")
        return value if type(value) is int and value > 0 else None

    @property
    def threads(self) -> int | None:
        """Per rank."""
        value = self.run.facts.get("threads")
        return value if type(value) is int and value > 0 else None

    @property
    def backend(self) -> str:
        """The ranks' own word; the launcher's where torch was left to choose and does not say."""
        said = self._first_rank_fact("backend")
        return (
            str(self.run.facts.get("backend") or UNKNOWN) if said in (None, "undefined") else said
        )

    @property
    def nodes(self) -> int:
        return len(self._ranks_by_node) or 1

    @property
    def ranks_per_node(self) -> int:
        return max(self._ranks_by_node.values(), default=1)

    @property
    def _ranks_by_node(self) -> Counter[int]:
        return Counter(self.node(rank) for rank in self.run.ranks)

    def node(self, rank: int) -> int:
        value = self.run.ranks[rank].facts.get("node")
        return value if isinstance(value, int) else 0

    @property
    def gradient_groups(self) -> tuple[int, ...]:
        """Sizes of the groups in which any rank reduced gradients."""
        sizes: set[int] = set()
        for record in self.run.ranks.values():
            found = record.facts.get("gradient_groups")
            sizes |= {s for s in found if isinstance(s, int)} if isinstance(found, list) else set()
        return tuple(sorted(sizes))

    @property
    def is_local_sgd(self) -> bool:
        return any(record.facts.get("local_sgd") is True for record in self.run.ranks.values())

    @property
    def is_unsupported(self) -> bool:
        return is_unsupported(self.gradient_groups, self.is_local_sgd, self.run.world_size)

    @property
    def samples_problem(self) -> str | None:
        return self._first_rank_fact("samples_problem")

    def fact(self, name: str) -> str:
        """From the first rank that knows, else from run.json."""
        return self._first_rank_fact(name) or str(self.run.facts.get(name) or UNKNOWN)

    def _first_rank_fact(self, name: str) -> str | None:
        values = (record.facts.get(name) for record in self.run.ranks.values())
        return next((value for value in values if isinstance(value, str) and value), None)

    def work(self, unit: Unit) -> float | None:
        """Samples or tokens of all ranks per used step; None where unknown."""
        if not self.has_steps:
            return None
        if unit == "samples" and self.stated_samples is not None:
            return self.stated_samples
        mean = float(work_per_step(self.panel, self.used, unit).mean())
        return mean if np.isfinite(mean) else None

    def rate(self, unit: Unit) -> float | None:
        """Samples or tokens per second of the used steps; None where unknown."""
        work, step_ms = self.work(unit), mean_step_ms(self)
        return None if work is None or not step_ms else 1e3 * work / step_ms


def load(run: Run) -> Loaded:
    panel = load_panel(run)
    return Loaded(run, panel, steady(panel))


def mean_step_ms(loaded: Loaded) -> float | None:
    """Release to release, mean over ranks and used steps."""
    if not loaded.has_steps:
        return None
    return float(release_to_release_ns(loaded.panel)[:, loaded.used].mean()) / NS_PER_MS


def rank_rows(loaded: Loaded, unit: Unit) -> tuple[RankRow, ...]:
    """Per rank, means over the used steps. Empty without any."""
    if not loaded.has_steps:
        return ()
    panel, used = loaded.panel, loaded.used
    phases = panel.phases_ns[:, used].mean(axis=1) / NS_PER_MS
    step_s = release_to_release_ns(panel)[:, used].mean(axis=1) / 1e9
    counts = (panel.samples if unit == "samples" else panel.tokens)[:, used].mean(axis=1)
    peaks = peak_memory(loaded.run)
    return tuple(
        RankRow(
            rank=rank,
            node=loaded.node(rank),
            phases_ms=dict(zip(PHASES, phases[r].tolist(), strict=True)),
            samples_per_s=float(counts[r] / step_s[r]) if np.isfinite(counts[r]) else None,
            peak_memory_bytes=peaks.get(rank),
        )
        for r, rank in enumerate(panel.ranks)
    )


def step_series(loaded: Loaded) -> StepSeries | None:
    """Every common step, mean over the ranks; None without steps."""
    panel = loaded.panel
    if panel.num_steps == 0 or panel.num_ranks == 0:
        return None
    ms = release_to_release_ns(panel).mean(axis=0) / NS_PER_MS
    return StepSeries(tuple(panel.index.tolist()), tuple(ms.tolist()), loaded.steady.reasons)
