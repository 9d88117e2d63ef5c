"""A panel as per-step columns, so that every quantity of the identity is a function of column means.

Resampling steps then is one matrix product, and the same code gives the value and its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports.panel import F64, I64, Bool, Panel
from diag.reports.replay import Replay, replay

NS_PER_MS = 1e6
_LOCAL = [PHASES.index(p) for p in LOCAL_PHASES]


@dataclass(frozen=True)
class Columns:
    """Per used step, in ms; or, in means of them, per resample (the first axis) or none at all.

    Attributes:
        local: [..., R, 6] self-time by phase, in the order of LOCAL_PHASES.
        self_max: [...] the slowest rank's self-time, max_r A.
        inner: [...] waiting for others at inner synchronizations: replayed makespan - max_r A.
        step: [...] release to release, mean over ranks; independent of the phases.
        labelled: [...] the phases' sum, mean over ranks.
        work: [...] samples or tokens of all ranks together; NaN where unknown.
    """

    local: F64
    self_max: F64
    inner: F64
    step: F64
    labelled: F64
    work: F64

    def resampled(self, weights: F64) -> Columns:
        """Weighted means. weights: [K, S], each row summing to one. Returns columns of length K."""
        rows = len(weights)
        return Columns(
            *((weights @ c.reshape(len(c), -1)).reshape(rows, *c.shape[1:]) for c in self._all())
        )

    @classmethod
    def joined(cls, runs: Sequence[Columns]) -> Columns:
        """The steps of several runs of equally many ranks, one run after the other."""
        return cls(*(np.concatenate(c) for c in zip(*(r._all() for r in runs), strict=True)))

    def parted(self, sizes: Sequence[int]) -> list[Columns]:
        """The inverse of `joined`."""
        edges = np.cumsum(sizes)[:-1]
        return [Columns(*c) for c in zip(*(np.split(x, edges) for x in self._all()), strict=True)]

    def first(self) -> Columns:
        """The first row alone, without its axis."""
        return Columns(*(np.asarray(c[0]) for c in self._all()))

    def shifted(self, shift: F64) -> Columns:
        """The same steps with every rank's phases moved by constants. shift: [R, 6] ms."""
        local = self.local + shift
        return replace(self, local=local, self_max=local.sum(axis=-1).max(axis=-1))

    @property
    def num_ranks(self) -> int:
        return int(self.local.shape[-2])

    @property
    def self_time(self) -> F64:
        """A: [..., R]."""
        return np.asarray(self.local.sum(axis=-1))

    def _all(self) -> tuple[F64, ...]:
        return (self.local, self.self_max, self.inner, self.step, self.labelled, self.work)


def widened(replicates: Columns, centre: Columns, factor: float) -> Columns:
    """Replicates moved away from their centre by a factor."""
    pairs = zip(replicates._all(), centre._all(), strict=True)
    return Columns(*(c + factor * (r - c) for r, c in pairs))


def release_to_release_ns(panel: Panel) -> I64:
    """Step times from the releases alone: [R, S] int64.

    From the previous step's release where the panel holds that step, else from the step's start.
    Time that no phase covers therefore shows up in the identity's residual.
    """
    begins = panel.start_ns.copy()
    follows = np.diff(panel.index) == 1
    begins[:, 1:][:, follows] = panel.end_ns[:, :-1][:, follows]
    return panel.end_ns - begins


def columns(panel: Panel, used: Bool, work: F64) -> tuple[Columns, Replay]:
    """The used steps' columns, and how the replay behind `inner` went.

    used: [S] mask with at least one step. work: per used step.
    """
    phases = panel.phases_ns[:, used]
    local = phases[:, :, _LOCAL].transpose(1, 0, 2) / NS_PER_MS
    played = replay(panel, used)
    built = Columns(
        local=local,
        self_max=local.sum(axis=-1).max(axis=-1),
        inner=played.inner_ns / NS_PER_MS,
        step=release_to_release_ns(panel)[:, used].mean(axis=0) / NS_PER_MS,
        labelled=phases.sum(axis=-1).mean(axis=0) / NS_PER_MS,
        work=work,
    )
    return built, played
