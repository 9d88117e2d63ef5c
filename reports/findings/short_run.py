"""short-run: too few steady steps to say much."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.findings.case import Case, finding
from diag.reports.model import Finding

FEWEST_STEPS = 30  # below it, intervals and significance are not to be relied on
_ADVICE = 60


def short_run(case: Case) -> tuple[Finding, ...]:
    """An info finding below FEWEST_STEPS used steps."""
    used = int(case.used.sum())
    if used >= FEWEST_STEPS:
        return ()
    left_out = [f"{n} {reason}" for reason, n in case.excluded.items()]
    recorded = f"{f.plural(case.panel.num_steps, 'step')} recorded, {used} of them used"
    title = "No steady step was recorded" if used == 0 else f"Only {used} steady steps to judge by"
    return (
        finding(
            "short-run",
            "info",
            title,
            [recorded + (f"; left out: {f.listing(left_out)}" if left_out else "")],
            f"Record at least {_ADVICE} steps after warm-up, e.g. diag run --max-steps 150.",
        ),
    )
