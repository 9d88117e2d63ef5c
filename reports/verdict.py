"""The verdict: one sentence that a person can act on. It never says more than is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    "compute": "each rank computes {ms} longer than the baseline does for the same work",
    "optimizer": "the optimizer step takes {ms} longer than at the baseline's pace",
    "data": "all ranks wait {ms} longer for data than at the baseline's pace",
    "copy": "copies to the device take {ms} longer than at the baseline's pace",
    "host": "each rank's own code on the host takes {ms} longer than at the baseline's pace",
    "straggler": "the slowest rank costs {ms}",
    "jitter": "late ranks, in turn, cost {ms}",
    "serialization": "waiting inside the step costs {ms}",
    "transfer": "communication costs {ms}",
    "residual": "{ms} are not accounted for",
}
# Losses of all ranks alike for which no finding need exist.
_ALIKE: tuple[TermName, ...] = ("compute", "optimizer", "copy", "host")
_EXPLAINED = 0.5  # of a term: a finding of less does not explain it
_SMALLER = 0.95  # a rank's batch, of the baseline's: closer ones are equal
_MOSTLY = 0.7


@dataclass(frozen=True)
class Situation:
    """What the verdict needs beside the accounting. excluded: reason to number of steps."""

    world_size: int
    rehearsal: bool
    num_steps: int
    steps_used: int
    unsupported: bool = False
    speedup: float | None = None  # the ratio of throughputs, where there is no accounting
    excluded: Mapping[str, int] = field(default_factory=dict)
    ending: str = ""  # how the run ended, in a clause, where not well


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
        why = at.ending or "it takes two optimizer steps on every rank, and the script ended before"
        return f"No step was recorded: {why}."
    return f"{_none_steady(at)}{f' Besides, {at.ending}.' if at.ending else ''}"


def _none_steady(at: Situation) -> str:
    """Why no step counts: by the reason that left out the most."""
    reason = max(at.excluded, key=lambda name: at.excluded[name], default="warm-up")
    recorded = f"{f.plural(at.num_steps, 'step')} recorded"
    if reason == "unsynced":
        return (
            f"Nothing to compare: {recorded}, but they ended without a gradient synchronization "
            "between the ranks; wrap the model (DDP, fully_shard)."
        )
    if reason == "warm-up":
        return (
            f"Too short to judge: {recorded}, none of them steady; let it run for 60 steps or more."
        )
    return f"No steady step: {recorded}, but every one was left out ({reason})."


def _lead(accounting: Accounting, findings: Sequence[Finding], at: Situation) -> str:
    reached = _reached(accounting, at)
    cause = next((one for one in findings if one.severity != "info" and one.ms is not None), None)
    largest = _largest_term(accounting)
    larger = None if cause is None else _larger(accounting, findings, largest, cause, at)
    if cause is not None and larger is not None:
        return f"{reached}: {larger}. Next: {_cause(accounting, cause)}."
    if cause is not None and cause.term is None:
        # Not in the steady step at all, so it is no part of the speed-up above.
        return f"{reached} in steady steps; besides, {_cause(accounting, cause)}."
    if cause is not None:
        return f"{reached}: {_cause(accounting, cause)}."
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
    return f"{reached}: {_largest(accounting, findings, largest, at)}."


def _larger(
    accounting: Accounting,
    findings: Sequence[Finding],
    largest: Term,
    cause: Finding,
    at: Situation,
) -> str | None:
    """What costs more than the worst cause of weight, if anything does.

    A rehearsal's wait for cores, which is only info; or a loss of all ranks alike that no finding
    names, where it surely is larger.
    """
    enough = max(cause.ms or 0.0, WARNING * accounting.step_ms)
    cores = next((one for one in findings if one.code == "cpu-oversubscribed"), None)
    if cores is not None and cores is not cause and (cores.ms or 0.0) > enough:
        return _cause(accounting, cores)
    if largest.term not in _ALIKE or _explaining(findings, largest) is not None:
        return None
    return _alike(accounting, largest, at) if (largest.low or 0.0) > enough else None


def _explaining(findings: Sequence[Finding], term: Term) -> Finding | None:
    """The finding that names most of a term."""
    enough = _EXPLAINED * (term.ms or 0.0)
    return next(
        (one for one in findings if one.term == term.term and (one.ms or 0) >= enough), None
    )


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
    """ "rank 2 is slow in backward and costs 18.2 ms of every 87.0 ms step; without it 3.6x"."""
    step = f.ms(accounting.step_ms)
    what = cause.title[0].lower() + cause.title[1:]
    if cause.term is None:
        return f"{what}, {f.ms(cause.ms)} a step over the whole run"
    if cause.code == "slow-rank":
        verb = "costs" if len(cause.ranks) == 1 else "cost"
        text = f"{what} and {verb} {f.ms(cause.ms)} of every {step} step"
    else:
        text = f"{what}, {f.ms(cause.ms)} of every {step} step"
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


def _largest_term(accounting: Accounting) -> Term:
    known = [t for t in accounting.terms if t.ms is not None and t.term != "residual"]
    return max(known, key=lambda t: t.ms or 0.0)


def _largest(
    accounting: Accounting, findings: Sequence[Finding], largest: Term, at: Situation
) -> str:
    """Where most of the loss is when no finding of weight names it."""
    if (largest.ms or 0.0) < WARNING * accounting.step_ms:
        return "many small losses, none of them 5% of the step"
    known_as = _explaining(findings, largest)
    if known_as is not None:
        return _cause(accounting, known_as)
    if largest.term in _ALIKE:
        return _alike(accounting, largest, at)
    ms = f"{f.ms(largest.ms)} of every {f.ms(accounting.step_ms)} step"
    return _LOSES[largest.term].format(ms=ms)


def _alike(accounting: Accounting, term: Term, at: Situation) -> str:
    """A loss of all ranks alike, and where to look first."""
    lost = _LOSES[term.term].format(ms=f.ms(term.ms))
    share = f"{f.percent((term.ms or 0.0) / accounting.step_ms)} of the step"
    return f"{lost}, {share}; {_where_to_look(accounting, term.term, at)}"


def _where_to_look(accounting: Accounting, term: TermName, at: Situation) -> str:
    """What to check or try first; a record cannot tell which of these it was."""
    if term == "host":
        return "look for .item(), printing, logging and metrics inside the loop"
    if term == "copy":
        return "use pin_memory=True and non_blocking=True; ranks share the host's memory and PCIe"
    if (accounting.q or 1.0) < _SMALLER:
        return "its batches are smaller here: try as many samples per rank as the baseline had"
    if at.rehearsal:
        return "ranks on one machine share its memory and caches: try fewer of them"
    if term == "optimizer":
        return "see whether it is fused (fused=True) and whether it waits for the host"
    compute = accounting.compute_ms or {}
    if compute.get("backward", 0.0) > _MOSTLY * sum(compute.values()):
        return "mostly in backward, beside the communication: compare GPU clocks, try other buckets"
    return "compare the GPUs' clocks, power and temperature with the baseline's"


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
