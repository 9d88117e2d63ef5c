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
_NEVER_SYNCHRONIZED = (
    "These steps ended without the ranks having reduced their gradients: each trained a model of "
    "its own. Give the model to engine.prepare (or wrap it in DistributedDataParallel or "
    "fully_shard) and call it, not model.module; no_sync() must end before the optimizer steps."
)


def short_run(case: Case) -> tuple[Finding, ...]:
    """An info finding below FEWEST_STEPS used steps."""
    used = int(case.used.sum())
    if used >= FEWEST_STEPS:
        return ()
    title = "No steady step was recorded" if used == 0 else f"Only {used} steady steps to judge by"
    return (
        finding(
            "short-run",
            "info",
            title,
            [_counted(case, used)],
            _hint(case),
        ),
    )


def _counted(case: Case, used: int) -> str:
    if case.panel.num_steps == 0:
        return "no step was recorded"
    left_out = [f"{n} {reason}" for reason, n in case.excluded.items()]
    recorded = f"{f.plural(case.panel.num_steps, 'step')} recorded, {used} of them used"
    return recorded + (f"; left out: {f.listing(left_out)}" if left_out else "")


def _hint(case: Case) -> str:
    if case.panel.num_steps == 0:
        return _NEVER_STEPPED
    if case.excluded.get("unsynced", 0) > case.panel.num_steps / 2:
        return _NEVER_SYNCHRONIZED
    return f"Record at least {_ADVICE} steps after warm-up, e.g. diag run --max-steps 150."
