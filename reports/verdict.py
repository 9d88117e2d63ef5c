"""The verdict: one sentence that a person can act on. It never says more than is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import WARNING
from diag.reports.findings.short_run import FEWEST_STEPS
from diag.reports.model import Finding, Term, TermName

_WELL = 0.9  # efficient enough to say that nothing is wrong
_WIDE = 0.2  # of the efficiency: an interval wider than this says little
_SUPERLINEAR = 1.02
_RESIDUAL = 0.01  # of the step: past it the terms are not to be trusted

_LOSES: dict[TermName, str] = {
    "compute": "on all ranks forward and backward cost {ms} more than at the baseline's pace",
    "optimizer": "on all ranks the optimizer step costs {ms} more than at the baseline's pace",
    "data": "all ranks wait {ms} longer for data than at the baseline's pace",
    "copy": "on all ranks copies to the device cost {ms} more than at the baseline's pace",
    "host": "on all ranks host code costs {ms} more than at the baseline's pace",
    "straggler": "the slowest rank costs {ms}",
    "jitter": "late ranks, in turn, cost {ms}",
    "serialization": "waiting inside the step costs {ms}",
    "transfer": "communication costs {ms}",
    "residual": "{ms} are not accounted for",
}


@dataclass(frozen=True)
class Situation:
    """What the verdict needs beside the accounting."""

    world_size: int
    rehearsal: bool
    num_steps: int
    steps_used: int
    unsupported: bool = False
    speedup: float | None = None  # the ratio of throughputs, where there is no accounting


def verdict(accounting: Accounting | None, findings: Sequence[Finding], at: Situation) -> str:
    """One sentence, at most two; `findings` worst first."""
    if accounting is None:
        return _no_numbers(at)
    return " ".join([_lead(accounting, findings, at), *_cautions(accounting, at)])


def _no_numbers(at: Situation) -> str:
    if at.unsupported:
        known = "" if at.speedup is None else f"{f.speedup(at.speedup)} on {_ranks(at)}. "
        return (
            f"{known}Gradients are not reduced over all ranks in each step, so the lost time "
            "cannot be split into causes; the phases per rank show where each rank spends it."
        )
    if at.num_steps == 0:
        return "No optimizer step was recorded on every rank: there is nothing to explain."
    return (
        f"Too short to judge: {f.plural(at.num_steps, 'step')} recorded, none of them steady; "
        "let it run for 60 steps or more."
    )


def _lead(accounting: Accounting, findings: Sequence[Finding], at: Situation) -> str:
    reached = _reached(accounting, at)
    cause = next((one for one in findings if one.severity != "info" and one.ms is not None), None)
    if cause is not None:
        return f"{reached}{_cause(accounting, cause)}."
    if at.steps_used < FEWEST_STEPS:
        return f"{reached}, from {f.plural(at.steps_used, 'steady step')}: too few to judge by."
    efficiency = accounting.efficiency.value or 0.0
    if accounting.kind == "estimated":
        return (
            f"{reached}: no rank holds the others up; what all ranks lose alike is unknown "
            "without a baseline."
        )
    if efficiency >= _WELL:
        return f"{'Nothing stands out' if _is_wide(accounting) else 'Nothing wrong'}: {reached}."
    return f"{reached}: {_largest(accounting, findings)}."


def _reached(accounting: Accounting, at: Situation) -> str:
    value, efficiency = accounting.speedup.value, accounting.efficiency.value
    if accounting.kind == "estimated":
        bound = f.speedup(value)
        return f"No baseline: at most {bound} on {_ranks(at)} (at most {f.percent(efficiency)} efficient)"
    base = accounting.baseline_world_size or 1
    on = f"on {_ranks(at)}" if base == 1 else f"from {base} to {_ranks(at)}"
    return f"{f.speedup(value)} {on} ({f.percent(efficiency)} efficient)"


def _ranks(at: Situation) -> str:
    return f.plural(at.world_size, "CPU rank" if at.rehearsal else "rank")


def _cause(accounting: Accounting, cause: Finding) -> str:
    """ ": rank 2 is slow in backward and costs 18.2 ms of every 87.0 ms step; without it 3.6x"."""
    step = f.ms(accounting.step_ms)
    what = cause.title[0].lower() + cause.title[1:]
    if cause.term is None:
        # Not in the steady step at all, so it is no part of the speed-up above.
        return f" in steady steps; besides, {what}, {f.ms(cause.ms)} a step over the whole run"
    if cause.code == "slow-rank":
        verb = "costs" if len(cause.ranks) == 1 else "cost"
        text = f": {what} and {verb} {f.ms(cause.ms)} of every {step} step"
    else:
        text = f": {what}, {f.ms(cause.ms)} of every {step} step"
    without = _speedup_without(accounting, cause)
    bound = "at most " if accounting.kind == "estimated" else ""
    it = "them" if cause.code == "slow-rank" and len(cause.ranks) > 1 else "it"
    return text if without is None else f"{text}; without {it} {bound}{f.speedup(without)}"


def _speedup_without(accounting: Accounting, cause: Finding) -> float | None:
    """The speed-up after the cure; None where the cause is no part of the identity's step."""
    saves, speedup = cause.would_save_ms, accounting.speedup.value
    if cause.term is None or saves is None or speedup is None or saves >= accounting.step_ms:
        return None
    return speedup * accounting.step_ms / (accounting.step_ms - saves)


def _largest(accounting: Accounting, findings: Sequence[Finding]) -> str:
    """Where most of the loss is when no finding of weight names it."""
    known = [t for t in accounting.terms if t.ms is not None and t.term != "residual"]
    largest: Term = max(known, key=lambda t: t.ms or 0.0)
    if (largest.ms or 0.0) < WARNING * accounting.step_ms:
        return "many small losses, none of them 5% of the step"
    known_as = next((one for one in findings if one.term == largest.term), None)
    if known_as is not None:
        what = f"{known_as.title[0].lower()}{known_as.title[1:]}"
        return f"{what}, {f.ms(known_as.ms)} of every {f.ms(accounting.step_ms)} step"
    ms = f"{f.ms(largest.ms)} of every {f.ms(accounting.step_ms)} step"
    return _LOSES[largest.term].format(ms=ms)


def _is_wide(accounting: Accounting) -> bool:
    value, low, high = (getattr(accounting.efficiency, n) for n in ("value", "low", "high"))
    return low is not None and high is not None and high - low > _WIDE * value


def _cautions(accounting: Accounting, at: Situation) -> list[str]:
    cautions = []
    efficiency = accounting.efficiency
    if efficiency.low is not None and efficiency.low > _SUPERLINEAR:
        cautions.append("Better than linear: make sure that nothing disturbed the baseline.")
    elif _is_wide(accounting):
        span = f"between {f.percent(efficiency.low)} and {f.percent(efficiency.high)}"
        cautions.append(
            f"The steps vary: it may be {span}; measure longer or on a quieter machine."
        )
    residual = accounting.term("residual").ms or 0.0
    if abs(residual) > _RESIDUAL * accounting.step_ms:
        share = f.percent(abs(residual) / accounting.step_ms)
        cautions.append(f"Caution: {share} of the step is not accounted for.")
    if at.rehearsal:
        cautions.append("A rehearsal on CPU: these are not a GPU's numbers.")
    return cautions
