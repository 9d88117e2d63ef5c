"""The one catalogue of codes: every finding, rule, check and hang code diag can name.

A code is stable: scripts and people rely on it. Each has a page in docs/codes/: what it
means, how it is seen, known limits, the remedy, how to silence it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["speed", "correctness", "hang", "check"]


@dataclass(frozen=True)
class Code:
    """One entry of the catalogue."""

    code: str
    kind: Kind
    title: str
    severity_rule: str  # in words: when it is info, warning, critical

    @property
    def docs(self) -> str:
        """The page, relative to the project's root."""
        return f"docs/codes/{self.code}.md"


_BY_SHARE = "info from 1% of the step, warning from 5%, critical from 15%"

_SPEED = (
    Code("slow-rank", "speed", "One or more ranks are slower than the rest", _BY_SHARE),
    Code("jitter", "speed", "A different rank is late in each step", _BY_SHARE),
    Code("data-bound", "speed", "All ranks wait for their data loaders", _BY_SHARE),
    Code("comm-bound", "speed", "Communication that no compute hides", _BY_SHARE),
    Code("rank0-work", "speed", "One rank works while the others wait", _BY_SHARE),
    Code("short-run", "speed", "Too few steady steps to judge", "info"),
    Code(
        "unsupported-topology",
        "speed",
        "Gradients are reduced over strict subgroups of the ranks",
        "info",
    ),
)

CATALOGUE: dict[str, Code] = {c.code: c for c in _SPEED}
