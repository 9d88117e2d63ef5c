"""What a detector may look at, and how it states what it found. Numbers in ms per step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from diag.codes import CATALOGUE
from diag.reports.accounting import Accounting
from diag.reports.model import Finding, Location, Severity, TermName, Wall
from diag.reports.panel import F64, Bool, Panel

NS_PER_MS = 1e6
INFO, WARNING, CRITICAL = 0.01, 0.05, 0.15  # shares of the step


@dataclass(frozen=True)
class Traffic:
    """What one rank's collectives move in a used step.

    Attributes:
        bytes: reduced, gathered or broadcast per step, as the collectives state them.
        collectives: how many per step.
        site: the line of the user's code that blocked longest, and its ms per step.
    """

    bytes: float
    collectives: float
    site: Location | None = None
    site_ms: float | None = None


@dataclass(frozen=True)
class CoreWait:
    """How long the typical rank's main thread stood ready without a core, ms per step.

    Attributes:
        ms: in this run.
        expected_ms: at the baseline's pace, its own wait in an ideal step's share.
    """

    ms: float
    expected_ms: float

    @property
    def excess_ms(self) -> float:
        return max(self.ms - self.expected_ms, 0.0)


@dataclass(frozen=True)
class Case:
    """One run as a detector sees it.

    Attributes:
        accounting: None where no steady step is left or the topology is not supported.
        panel: every common step of every rank.
        used: [S] mask of the steady steps.
        excluded: reason to number of steps left out.
        gradient_groups: sizes of the groups that reduced gradients; empty if unknown.
        cores: of a node, None if unknown.
        threads: per rank, None if unknown.
        core_wait: how long ranks stood ready without a core; None if not measured, in both runs.
    """

    accounting: Accounting | None
    panel: Panel
    used: Bool
    world_size: int
    device: str = "cuda"
    rehearsal: bool = False
    excluded: dict[str, int] = field(default_factory=dict)
    gradient_groups: tuple[int, ...] = ()
    local_sgd: bool = False
    ranks_per_node: int = 1
    cores: int | None = None
    threads: int | None = None
    core_wait: CoreWait | None = None
    traffic: Traffic | None = None
    wall: Wall | None = None

    def self_ms(self) -> F64:
        """A of every rank in the used steps, shape [R, used]."""
        return self.panel.self_ns[:, self.used] / NS_PER_MS

    def position(self, rank: int) -> int:
        """Where `rank` is on the panel's first axis."""
        return self.panel.ranks.index(rank)


def severity(share: float) -> Severity | None:
    """How much a share of the step matters; None below what is worth acting on."""
    if share >= CRITICAL:
        return "critical"
    if share >= WARNING:
        return "warning"
    return "info" if share >= INFO else None


def finding(
    code: str,
    level: Severity,
    title: str,
    evidence: Iterable[str],
    hint: str,
    *,
    ms: float | None = None,
    term: TermName | None = None,
    ranks: tuple[int, ...] = (),
    phase: str | None = None,
    location: Location | None = None,
    would_save_ms: float | None = None,
) -> Finding:
    """A Finding whose code is in the catalogue."""
    return Finding(
        code=code,
        severity=level,
        title=title,
        ranks=ranks,
        phase=phase,
        ms=ms,
        term=term,
        location=location,
        evidence=tuple(evidence),
        hint=hint,
        docs=CATALOGUE[code].docs,
        would_save_ms=would_save_ms,
    )
