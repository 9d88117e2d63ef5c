"""A run as arrays: what accounting reads. Built from a record by `load.py`, by hand in tests.

Shapes: R ranks × S steps (the step indices every rank has). Times in nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diag.record.schema import PHASES, StepFlag

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
EXPOSED = PHASES.index("exposed_comm")


@dataclass(frozen=True)
class Waits:
    """Inner synchronizations of one rank, sorted by wait_ns: int64 arrays of one length.

    `key` is the same number for the same collective on all ranks; `step` indexes Panel's S axis.
    Includes the wait that releases the step. issue_ns <= wait_ns <= end_ns.
    """

    key: I64
    step: I64
    issue_ns: I64
    wait_ns: I64
    end_ns: I64
    world: npt.NDArray[np.bool_]  # the collective's group is all ranks
    root: I64 | None = None  # position in Panel.ranks that the others wait for; -1: all for all


@dataclass(frozen=True)
class Panel:
    """One run's steps, aligned over ranks.

    Attributes:
        ranks: rank numbers, length R.
        index: optimizer-step numbers, length S, increasing.
        start_ns, end_ns: [R, S].
        phases_ns: [R, S, 7] in the order of diag.record.schema.PHASES; sums to end - start.
        samples: [R, S] float, NaN where unknown.
        tokens: [R, S] float, NaN where unknown.
        flags: [R, S] StepFlag bits.
        probe_ns: [R, S].
        waits: per rank, or empty when the record holds none.
        warnings: sentences about steps or ranks that could not be aligned.
    """

    ranks: tuple[int, ...]
    index: I64
    start_ns: I64
    end_ns: I64
    phases_ns: I64
    samples: F64
    tokens: F64
    flags: I64
    probe_ns: I64
    waits: tuple[Waits, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_steps(self) -> int:
        return len(self.index)

    @property
    def self_ns(self) -> I64:
        """Self-time A: the step minus what was spent blocked on collectives. [R, S]"""
        total: I64 = self.phases_ns.sum(axis=2) - self.phases_ns[:, :, EXPOSED]
        return total

    def flagged(self, flag: StepFlag) -> npt.NDArray[np.bool_]:
        """Steps in which any rank carries `flag`. [S]"""
        hit: npt.NDArray[np.bool_] = ((self.flags & int(flag)) != 0).any(axis=0)
        return hit
