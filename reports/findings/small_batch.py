"""small-batch: the optimizer step, which no batch makes shorter, is paid for by fewer samples."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import Case, finding, severity
from diag.reports.model import Finding

_SMALLER = 0.95  # a rank's batch, of the baseline's: closer ones are equal
_HINT = (
    "Let a step train on more samples (a larger global batch, or accumulate gradients under "
    "no_sync()), make the update cheaper (fused=True), or share it out between the ranks: "
    "fully_shard, or ZeroRedundancyOptimizer."
)


def small_batch(case: Case) -> tuple[Finding, ...]:
    """One finding where ranks have smaller batches than the baseline's but as long an update."""
    accounting = case.accounting
    if accounting is None:
        return ()
    ms = unamortized_ms(accounting)
    level = severity(ms / accounting.step_ms)
    if level is None:
        return ()
    saves = accounting.term("optimizer").would_save_ms
    return (
        finding(
            "small-batch",
            level,
            "Per-rank batches are too small for the optimizer step",
            _evidence(accounting, ms),
            _HINT,
            ms=ms,
            term="optimizer",
            ranks=case.panel.ranks,
            phase="optimizer",
            would_save_ms=None if saves is None else min(saves, ms),
        ),
    )


def unamortized_ms(accounting: Accounting) -> float:
    """Ms per step of the optimizer term that come from the smaller batch alone; 0 without.

    An update reads and writes every parameter, however many samples made the gradients. So of a
    baseline's update the part (1 - q), which an ideal rank would save, is owed to the batch. What
    the update takes beyond the baseline's has another cause.
    """
    q, base = accounting.q, accounting.baseline_typical_ms
    term = accounting.term("optimizer")
    if q is None or q >= _SMALLER or base is None or term.low is None or term.low <= 0:
        return 0.0
    return min(term.ms or 0.0, (1 - q) * base["optimizer"])


def _evidence(accounting: Accounting, ms: float) -> list[str]:
    base, q = accounting.baseline_typical_ms, accounting.q
    assert base is not None
    assert q is not None
    own = accounting.typical_ms["optimizer"]
    return [
        f"a rank's batch is {f.percent(q)} of the baseline's, its optimizer step takes "
        f"{f.ms(own)} against {f.ms(base['optimizer'])}: that depends on the parameters, not on "
        "the batch",
        f"{f.ms(ms)} of each {f.ms(accounting.step_ms)} step are spent so",
    ]
