"""short-run: too few steady steps to say much."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.findings.case import Case, finding
from diag.reports.model import Finding

FEWEST_STEPS = 30  # below it, intervals and significance are not to be relied on
_ADVICE = 60
_NEVER_STEPPED = (
    "A step is the time from one gradient synchronization to the next: the script must call "
    "backward() and a torch optimizer's step() at least twice on every rank. Its output is in "
    "the run's logs/."
)


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
            _NEVER_STEPPED
            if case.panel.num_steps == 0
            else f"Record at least {_ADVICE} steps after warm-up, e.g. diag run --max-steps 150.",
        ),
    )
