"""The Report: what explaining yields and every renderer reads. Plain data, JSON-shaped.

`to_json` of a Report is the outside contract ``diag.scaling-report/1`` (docs/schemas/).
Numbers are finite or None. Milliseconds per step, seconds of wall time, bytes, shares 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning", "info"]
TermName = Literal[
    "compute", "optimizer", "data", "copy", "host",
    "straggler", "jitter", "serialization", "transfer", "residual",
]  # fmt: skip
TERMS: tuple[TermName, ...] = (
    "compute", "optimizer", "data", "copy", "host",
    "straggler", "jitter", "serialization", "transfer", "residual",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (see Report.interval_level); all None where unknown."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RunSummary:
    name: str
    world_size: int
    nodes: int
    device: str
    backend: str
    mode: str
    strategy: str
    scaling: Literal["strong", "weak", "other"]
    steps_used: int
    steps_excluded: dict[str, int]
    samples_per_step: float | None


@dataclass(frozen=True)
class BaselineSummary:
    name: str | None
    world_size: int
    samples_per_step: float | None
    kind: Literal["measured", "estimated"]
    runs: int


@dataclass(frozen=True)
class Throughput:
    """In `unit` per second."""

    unit: str
    run: float | None
    baseline: float | None


@dataclass(frozen=True)
class Term:
    """A part of the lost time per step. Σ ms over all terms = measured - ideal."""

    term: TermName
    ms: float | None
    low: float | None
    high: float | None
    share: float | None  # ms / step_ms.measured
    would_save_ms: float | None
    speedup_without: float | None
    ranks: tuple[int, ...] = ()
    phase: str | None = None


@dataclass(frozen=True)
class Pop:
    """POP's multiplicative efficiencies (https://pop-coe.eu/node/69); the product is `efficiency`."""

    computation: float | None
    load_balance: float | None
    serialization: float | None
    transfer: float | None
    efficiency: float | None


@dataclass(frozen=True)
class Wall:
    """Where the wall clock went, in seconds; `waited` is what the other ranks lost meanwhile."""

    startup_s: float | None
    warm_up_s: float | None
    steady_s: float | None
    checkpoint_s: float | None
    evaluation_s: float | None
    shutdown_s: float | None
    other_s: float | None
    total_s: float | None
    checkpoint_waited_s: float | None
    evaluation_waited_s: float | None
    end_to_end_speedup: float | None


@dataclass(frozen=True)
class RankRow:
    rank: int
    node: int
    phases_ms: dict[str, float]
    samples_per_s: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class SpanRow:
    """A part of the step the user named; milliseconds per step."""

    name: str
    per_rank_ms: dict[int, float]
    baseline_ms: float | None  # mean over the baseline's ranks

    @property
    def slowest(self) -> int:
        return max(self.per_rank_ms, key=self.per_rank_ms.__getitem__)

    @property
    def mean_ms(self) -> float:
        return sum(self.per_rank_ms.values()) / len(self.per_rank_ms)


@dataclass(frozen=True)
class Location:
    file: str
    line: int


@dataclass(frozen=True)
class Finding:
    """A named cause with its evidence; `code` is in diag.codes."""

    code: str
    severity: Severity
    title: str
    ranks: tuple[int, ...]
    phase: str | None
    ms: float | None
    term: TermName | None
    location: Location | None
    evidence: tuple[str, ...]
    hint: str
    docs: str
    would_save_ms: float | None


@dataclass(frozen=True)
class ProbeOverhead:
    share: float | None
    method: str


@dataclass(frozen=True)
class StepSeries:
    """For the figures only (not in the JSON): step time over time, shape [steps]."""

    index: tuple[int, ...]
    ms: tuple[float, ...]
    excluded: tuple[str | None, ...]  # reason, or None where used


@dataclass(frozen=True)
class MemorySeries:
    """For the figures only: one rank's memory over time."""

    rank: int
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    diag_version: str
    run: RunSummary
    baseline: BaselineSummary
    throughput: Throughput
    speedup: Estimate
    speedup_ideal: float
    efficiency: Estimate
    interval_level: float
    interval_kind: Literal["within-run", "between-runs"]
    step_measured_ms: float | None
    step_ideal_ms: float | None
    terms: tuple[Term, ...]
    pop: Pop
    wall: Wall
    per_rank: tuple[RankRow, ...]
    findings: tuple[Finding, ...]
    verdict: str
    warnings: tuple[str, ...]
    lost: tuple[str, ...]
    probe_overhead: ProbeOverhead
    rehearsal: bool = False
    baseline_command: str | None = None  # the exact command that would measure a baseline
    step_series: StepSeries | None = None
    memory_series: tuple[MemorySeries, ...] = ()
    spans: tuple[SpanRow, ...] = ()

    def term(self, name: TermName) -> Term:
        return next(t for t in self.terms if t.term == name)
