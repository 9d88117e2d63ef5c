"""The words of a verdict on a hang."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Place:
    """A line of code. function: "" where unknown."""

    file: str
    line: int
    function: str = ""


@dataclass(frozen=True)
class Pending:
    """The collective that the waiting ranks do not get out of; seq is its number in its group."""

    op: str
    seq: int
    group: str
    num_bytes: int = 0
    dtype: str = ""


@dataclass(frozen=True)
class CallSite:
    """One side of a mismatch: these ranks are in this collective, called here."""

    ranks: tuple[int, ...]
    what: str
    place: Place | None


@dataclass(frozen=True)
class Accusation:
    """What one pattern found.

    Attributes:
        code: of diag.codes; None for what is no hang.
        waiting: ranks blocked because of the culprits.
        location: where the culprits are, or were last.
        provable: whether the pattern, seen twice and for long enough, is a proof.
        sites: of a mismatch, both sides; the culprits' first.
        pause: what the culprits say they are doing ("checkpoint" …), where that explains it.
        notes: sentences of evidence particular to the pattern.
    """

    code: str | None
    culprits: tuple[int, ...]
    waiting: tuple[int, ...]
    why: str
    hint: str
    location: Place | None = None
    pending: Pending | None = None
    provable: bool = False
    sites: tuple[CallSite, ...] = ()
    pause: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The answer; fields as in Accusation.

    Attributes:
        proven: the pattern is one that cannot resolve, no rank progressed for as long as counts
            as too long, and a second reading was the same.
        seconds_to_verdict: since the last progress of any rank.
        evidence: sentences, the culprits' first.
        missing: what could not be read, and why.
    """

    run: str
    code: str | None
    proven: bool
    culprits: tuple[int, ...]
    waiting: tuple[int, ...]
    collective: Pending | None
    location: Place | None
    why: str
    seconds_to_verdict: float
    evidence: tuple[str, ...]
    hint: str
    sites: tuple[CallSite, ...] = ()
    pause: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def is_hang(self) -> bool:
        """False for a named pause, and where nothing is wrong."""
        return self.code is not None
