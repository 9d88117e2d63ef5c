"""One Accounting out of two pooled sides: values, intervals, significance, savings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from diag.record.schema import LOCAL_PHASES
from diag.reports import identity
from diag.reports.accounting import MATERIAL_SHARE, Accounting, RankMeans, Straggler
from diag.reports.intervals import LEVEL, Limits, intervals
from diag.reports.model import TERMS, Estimate, Term, TermName
from diag.reports.panel import F64
from diag.reports.savings import savings
from diag.reports.significance import Rotation, SlowRanks, rotation, slow_ranks
from diag.reports.stats import MIN_STEPS, Pooled, resample
from diag.reports.throughput import Unit


class Assembly:
    """Puts one Accounting together out of two pooled sides."""

    def __init__(
        self,
        ranks: tuple[int, ...],
        side: Pooled,
        base: Pooled | None,
        unit: Unit,
        waits_known: bool,
    ) -> None:
        self.ranks = ranks
        self.side, self.base = side, base
        self.unit, self.waits_known = unit, waits_known
        centre, base_centre = side.centre, None if base is None else base.centre
        self.parts = identity.split(centre)
        self.base_parts = None if base_centre is None else identity.split(base_centre)
        self.q = identity.ideal_share(centre, base_centre)
        self.ideal_ms = float(identity.ideal_step(self.parts, self.base_parts, self.q))
        self.step_ms = float(self.parts.step)
        self.ideal_speedup = centre.num_ranks / (
            1 if base_centre is None else base_centre.num_ranks
        )
        drawn, base_drawn = resample(side), None if base is None else resample(base)
        self.drawn, self.base_drawn = drawn, base_drawn
        enough = drawn is not None and (base is None or base_drawn is not None)
        self.limits: Limits = intervals(drawn, base_drawn) if drawn and enough else {}
        self.slow = self._material(slow_ranks(drawn)) if drawn else SlowRanks((), None, False)
        self.rotation = rotation(drawn) if drawn else Rotation(0.0, False)

    def accounting(self, per_rank: tuple[RankMeans, ...], notes: Sequence[str]) -> Accounting:
        centre, base = self.side.centre, self.base
        jitter = float(self.parts.jitter)
        return Accounting(
            world_size=len(self.ranks),
            baseline_world_size=None if base is None else base.centre.num_ranks,
            steps_used=len(self.side.share),
            kind="estimated" if base is None else "measured",
            unit=self.unit,
            samples_per_step=_known(centre.work),
            baseline_samples_per_step=None if base is None else _known(base.centre.work),
            q=_known(self.q),
            step_ms=self.step_ms,
            ideal_ms=self.ideal_ms,
            baseline_step_ms=None if base is None else float(base.centre.step),
            speedup=self._scaled_efficiency(self.ideal_speedup),
            speedup_ideal=self.ideal_speedup,
            efficiency=self._scaled_efficiency(1.0),
            terms=self._terms(),
            compute_ms=self._compute(),
            typical_ms=_by_phase(self.parts.typical),
            baseline_typical_ms=None
            if self.base_parts is None
            else _by_phase(self.base_parts.typical),
            typical_self_ms=float(self.parts.typical.sum()),
            slowest_self_ms=float(centre.self_max),
            mean_self_ms=float(centre.self_time.mean()),
            inner_ms=float(self.parts.inner) if self.waits_known else None,
            exposed_ms=float(self.parts.transfer),
            per_rank=per_rank,
            stragglers=tuple(self._straggler(r) for r in self.slow.positions),
            straggler_threshold_ms=self.slow.threshold_ms,
            straggler_significant=self.slow.significant,
            jitter_expected_ms=self.rotation.expected_ms,
            jitter_excess_ms=jitter - self.rotation.expected_ms,
            jitter_significant=self.rotation.significant,
            jitter_phase=self._jitter_phase(),
            interval_level=LEVEL,
            interval_kind=self._interval_kind(),
            block_length=self.drawn.length if self.drawn and self.limits else None,
            notes=(*notes, *self._doubts()),
        )

    def _material(self, slow: SlowRanks) -> SlowRanks:
        """Beside a rank that is 30 ms late, one that is surely 0.8 ms late is nobody's business."""
        enough = MATERIAL_SHARE * self.step_ms
        excess = (self._straggler(r).excess_ms for r in slow.positions)
        kept = tuple(r for r, ms in zip(slow.positions, excess, strict=True) if ms >= enough)
        return replace(slow, positions=kept)

    def _scaled_efficiency(self, scale: float) -> Estimate:
        low, high = self.limits.get("efficiency", (None, None))
        value = self.ideal_ms / self.step_ms
        return Estimate(
            scale * value,
            None if low is None else scale * max(low, 0.0),
            None if high is None else scale * high,
        )

    def _terms(self) -> tuple[Term, ...]:
        ms = identity.lost(self.parts, self.base_parts, self.q)
        saved = savings(self.side, self.parts, self.base_parts, self.q, self.slow.positions)
        return tuple(
            self._term(name, float(ms[name]), saved[name])
            if self._is_known(name)
            else Term(name, None, None, None, None, None, None)
            for name in TERMS
        )

    def _is_known(self, name: TermName) -> bool:
        if name in identity.SYSTEMIC:
            return self.base is not None
        return name != "serialization" or self.waits_known

    def _term(self, name: TermName, ms: float, saved: float | None) -> Term:
        low, high = self.limits.get(name, (None, None))
        speedup = self.ideal_speedup * self.ideal_ms / self.step_ms
        without = None
        if saved is not None and saved < self.step_ms:
            without = speedup * self.step_ms / (self.step_ms - saved)
        ranks = self.slow.positions if name == "straggler" else ()
        return Term(
            term=name,
            ms=ms,
            low=low,
            high=high,
            share=ms / self.step_ms,
            would_save_ms=saved,
            speedup_without=without,
            ranks=tuple(self.ranks[r] for r in ranks),
            phase=self._phase(name),
        )

    def _phase(self, name: TermName) -> str | None:
        if name == "straggler" and self.slow.positions:
            return self._straggler(self.slow.positions[0]).phase
        if name == "jitter":
            return self._jitter_phase()
        compute = self._compute()
        if name == "compute" and compute is not None:
            return max(compute, key=compute.__getitem__)
        return name if name in ("data", "copy", "optimizer", "host") else None

    def _compute(self) -> dict[str, float] | None:
        if self.base_parts is None:
            return None
        excess = _by_phase(self.parts.typical - self.q * self.base_parts.typical)
        return {"forward": excess["forward"], "backward": excess["backward"]}

    def _straggler(self, position: int) -> Straggler:
        excess = _by_phase(self.side.centre.local[position] - self.parts.typical)
        worst = max(excess, key=excess.__getitem__)
        return Straggler(self.ranks[position], sum(excess.values()), worst, excess)

    def _jitter_phase(self) -> str | None:
        """Where the slowest rank of each step spends more than it does on average."""
        if not self.rotation.significant:
            return None
        steps = self.side.steps
        slowest = steps.self_time.argmax(axis=1)
        late = steps.local[np.arange(len(slowest)), slowest] - self.side.centre.local[slowest]
        excess = _by_phase(self.side.share @ late)
        return max(excess, key=excess.__getitem__)

    def _interval_kind(self) -> Literal["within-run", "between-runs"]:
        sides = [self.drawn, self.base_drawn] if self.base is not None else [self.drawn]
        between = all(side is not None and side.between_runs for side in sides)
        return "between-runs" if between else "within-run"

    def _doubts(self) -> list[str]:
        doubts = []
        if not self.limits:
            doubts.append(
                f"fewer than {MIN_STEPS} steady steps: no intervals, and no rank is called slow"
            )
        residual = float(identity.lost(self.parts, self.base_parts, self.q)["residual"])
        if abs(residual) > MATERIAL_SHARE * self.step_ms:
            doubts.append(
                f"{residual:.2f} ms of {self.step_ms:.2f} ms a step are not accounted for: "
                "do not trust these terms"
            )
        return doubts


def _known(value: F64) -> float | None:
    return float(value) if np.isfinite(value) else None


def _by_phase(values: F64) -> dict[str, float]:
    return {p: float(v) for p, v in zip(LOCAL_PHASES, values, strict=True)}
