"""data-bound: all ranks wait for their loaders longer than the baseline did."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import Case, finding, severity
from diag.reports.model import Finding

_HINT = (
    "Feed the ranks faster: raise num_workers (but keep ranks x workers below the cores), set "
    "persistent_workers=True and a larger prefetch_factor, or move decoding out of the loop. "
    "All ranks read the same disk: N of them may saturate what one does not."
)


def data_bound(case: Case) -> tuple[Finding, ...]:
    """One finding where the data term is clearly positive; never on an estimate."""
    accounting = case.accounting
    if accounting is None or accounting.kind == "estimated":
        return ()
    term = accounting.term("data")
    if term.ms is None or term.low is None or term.low <= 0:
        return ()
    level = severity(term.ms / accounting.step_ms)
    if level is None:
        return ()
    return (
        finding(
            "data-bound",
            level,
            "All ranks wait for their data loaders",
            _evidence(case, accounting),
            _HINT,
            ms=term.ms,
            term="data",
            ranks=case.panel.ranks,
            phase="data",
            would_save_ms=term.would_save_ms,
        ),
    )


def _evidence(case: Case, accounting: Accounting) -> list[str]:
    typical = accounting.typical_ms["data"]
    lines = [f"the typical rank waits {f.ms(typical)} of each {f.ms(accounting.step_ms)} step"]
    if accounting.baseline_typical_ms is not None and accounting.q is not None:
        expected = accounting.q * accounting.baseline_typical_ms["data"]
        lines[0] += f"; at the baseline's pace it would wait {f.ms(expected)}"
    waits = [row.phases_ms["data"] for row in accounting.per_rank]
    if waits:
        least, most = f.ms(min(waits)), f.ms(max(waits))
        span = f"about {most}" if least == most else f"between {least} and {most}"
        lines.append(f"every rank waits, {span} a step")
    return lines
