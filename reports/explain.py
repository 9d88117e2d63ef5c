"""Explaining: a run and its baselines, as read, become a Report. The one place that joins the rooms.

What cannot be known becomes None and a sentence in the report; nothing here is fatal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import diag
from diag.record.reader import Run
from diag.reports import format as f
from diag.reports.account import Measured, account
from diag.reports.accounting import Accounting
from diag.reports.corewait import core_wait
from diag.reports.ending import ending
from diag.reports.findings import find
from diag.reports.findings.case import Case
from diag.reports.findings.cures import saved_by_curing
from diag.reports.findings.periodic import occasional_workers
from diag.reports.loaded import Loaded, load, mean_step_ms, rank_rows, step_series
from diag.reports.locations import locate
from diag.reports.model import (
    TERMS,
    BaselineSummary,
    Estimate,
    Pop,
    Report,
    RunSummary,
    Term,
    Throughput,
)
from diag.reports.observations import memory_series
from diag.reports.overhead import probe_overhead
from diag.reports.pop import pop
from diag.reports.spans import span_rows
from diag.reports.throughput import Unit, choose_unit
from diag.reports.traffic import load_traffic
from diag.reports.verdict import Situation, verdict
from diag.reports.wall import UNKNOWN as NO_WALL
from diag.reports.wall import Watched, wall

_SAME = 0.02  # batches this close are equal
_UNKNOWN_TERMS = tuple(Term(name, None, None, None, None, None, None) for name in TERMS)
_NO_POP = Pop(None, None, None, None, None)


def explain(
    run: Run,
    baselines: Sequence[Run] = (),
    *,
    repeats: Sequence[Run] = (),
    notes: Sequence[str] = (),
    ignore: Collection[str] = (),
    command: str | None = None,
) -> Report:
    """Explain `run` against comparable runs of fewer ranks.

    Args:
        baselines: all of one size, the best choice first; those without steady steps are skipped.
            More than one are pooled.
        repeats: further runs of the same kind as `run`, pooled with it: with three or more on
            both sides intervals hold between runs.
        notes: sentences on how these runs were chosen; they become warnings.
        ignore: codes of findings to leave out.
        command: what would measure a baseline; shown where there is none.
    """
    loaded = load(run)
    others = [one for one in map(load, repeats) if one.has_steps]
    bases = [one for one in map(load, baselines) if one.has_steps] if loaded.has_steps else []
    unit = choose_unit([(one.panel, one.used) for one in (loaded, *bases)])
    accounting = _account(loaded, others, bases, unit)
    case = _case(loaded, accounting, bases)
    findings = locate(find(case, ignore), run)
    throughput = _throughput(loaded, bases, unit)
    ratio, ideal = _ratio(throughput), _ideal(run, bases)
    return Report(
        diag_version=diag.__version__,
        run=_run_summary(loaded, bases, unit),
        baseline=_baseline_summary(bases, accounting, unit),
        throughput=throughput,
        speedup=accounting.speedup if accounting else Estimate(ratio),
        speedup_ideal=accounting.speedup_ideal if accounting else ideal,
        efficiency=accounting.efficiency if accounting else Estimate(ratio and ratio / ideal),
        interval_level=accounting.interval_level if accounting else 0.95,
        interval_kind=accounting.interval_kind if accounting else "within-run",
        step_measured_ms=accounting.step_ms if accounting else mean_step_ms(loaded),
        step_ideal_ms=accounting.ideal_ms if accounting else None,
        terms=_terms(accounting, case) if accounting else _UNKNOWN_TERMS,
        pop=pop(accounting) if accounting else _NO_POP,
        wall=case.wall or NO_WALL,
        per_rank=rank_rows(loaded, unit),
        findings=findings,
        verdict=verdict(accounting, findings, _situation(loaded, case, ratio)),
        warnings=tuple(dict.fromkeys(_warnings(loaded, bases, others, accounting, notes))),
        lost=_lost(run, bases),
        probe_overhead=probe_overhead(loaded),
        rehearsal=case.rehearsal,
        baseline_command=command if accounting and not bases else None,
        step_series=step_series(loaded),
        memory_series=memory_series(run),
        spans=span_rows(loaded, bases[0] if bases else None),
    )


def _account(
    loaded: Loaded, others: Sequence[Loaded], bases: Sequence[Loaded], unit: Unit
) -> Accounting | None:
    """None where nothing can be accounted for: no steady step, or an unsupported topology."""
    if not loaded.has_steps or loaded.is_unsupported:
        return None
    base = bases[0] if bases else None
    return account(
        loaded.panel,
        base.panel if base else None,
        used=loaded.used,
        baseline_used=base.used if base else None,
        unit=unit,
        samples_per_step=loaded.stated_samples if unit == "samples" else None,
        baseline_samples_per_step=base.stated_samples if base and unit == "samples" else None,
        more_runs=[Measured(one.panel, one.used) for one in others],
        more_baselines=[Measured(one.panel, one.used) for one in bases[1:]],
    )


def _case(loaded: Loaded, accounting: Accounting | None, bases: Sequence[Loaded]) -> Case:
    return Case(
        accounting=accounting,
        panel=loaded.panel,
        used=loaded.used,
        world_size=loaded.run.world_size,
        device=loaded.device,
        rehearsal=loaded.is_rehearsal,
        excluded=loaded.steady.excluded,
        gradient_groups=loaded.gradient_groups,
        local_sgd=loaded.is_local_sgd,
        ranks_per_node=loaded.ranks_per_node,
        cores=loaded.cores,
        threads=loaded.threads,
        core_wait=core_wait(loaded, bases[0], accounting) if accounting and bases else None,
        traffic=load_traffic(loaded.run, loaded.panel, loaded.used),
        wall=wall(_watched(loaded), _watched(bases[0]) if bases else None, accounting),
    )


def _watched(loaded: Loaded) -> Watched:
    facts_by_rank = {rank: record.facts for rank, record in loaded.run.ranks.items()}
    return Watched(loaded.run.facts, facts_by_rank, loaded.panel, loaded.steady)


def _situation(loaded: Loaded, case: Case, ratio: float | None) -> Situation:
    return Situation(
        world_size=case.world_size,
        rehearsal=case.rehearsal,
        num_steps=case.panel.num_steps,
        steps_used=int(case.used.sum()),
        unsupported=loaded.is_unsupported,
        speedup=ratio,
        excluded=case.excluded,
        ending="the run is still going on" if loaded.run.running else next(ending(loaded.run), ""),
    )


def _run_summary(loaded: Loaded, bases: Sequence[Loaded], unit: Unit) -> RunSummary:
    return RunSummary(
        name=loaded.run.name,
        world_size=loaded.run.world_size,
        nodes=loaded.nodes,
        device=loaded.device,
        backend=loaded.backend,
        mode=loaded.fact("mode"),
        strategy=loaded.fact("strategy"),
        scaling=_scaling(loaded, bases, unit),
        steps_used=int(loaded.used.sum()),
        steps_excluded=dict(loaded.steady.excluded),
        samples_per_step=loaded.work(unit),
    )


def _scaling(
    loaded: Loaded, bases: Sequence[Loaded], unit: Unit
) -> Literal["strong", "weak", "other"]:
    """strong: the baseline's global batch; weak: its batch per rank."""
    mine, theirs = loaded.work(unit), bases[0].work(unit) if bases else None
    if mine is None or theirs is None:
        return "other"
    if _same(mine, theirs):
        return "strong"
    per_rank = theirs / bases[0].run.world_size
    return "weak" if _same(mine / loaded.run.world_size, per_rank) else "other"


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= _SAME * max(abs(a), abs(b))


def _baseline_summary(
    bases: Sequence[Loaded], accounting: Accounting | None, unit: Unit
) -> BaselineSummary:
    if not bases:
        return BaselineSummary(None, 1, None, "estimated", 0)
    kind = accounting.kind if accounting else "measured"
    size = bases[0].run.world_size
    samples = accounting.baseline_samples_per_step if accounting else bases[0].work(unit)
    return BaselineSummary(bases[0].run.name, size, samples, kind, len(bases))


def _terms(accounting: Accounting, case: Case) -> tuple[Term, ...]:
    """The terms; a straggler that works from time to time is cured in those steps only."""
    workers = occasional_workers(case)
    if not workers:
        return accounting.terms
    saves = saved_by_curing(case, {s.rank for s in accounting.stragglers} | workers.keys())
    speedup, step = accounting.speedup.value, accounting.step_ms
    then = None if speedup is None or saves >= step else speedup * step / (step - saves)
    return tuple(
        replace(term, would_save_ms=saves, speedup_without=then)
        if term.term == "straggler"
        else term
        for term in accounting.terms
    )


def _throughput(loaded: Loaded, bases: Sequence[Loaded], unit: Unit) -> Throughput:
    """By themselves, without the identity: also known where that does not hold."""
    return Throughput(unit, loaded.rate(unit), bases[0].rate(unit) if bases else None)


def _ratio(throughput: Throughput) -> float | None:
    if not throughput.run or not throughput.baseline:
        return None
    return throughput.run / throughput.baseline


def _ideal(run: Run, bases: Sequence[Loaded]) -> float:
    return float(run.world_size) / (bases[0].run.world_size if bases else 1)


def _warnings(
    loaded: Loaded,
    bases: Sequence[Loaded],
    others: Sequence[Loaded],
    accounting: Accounting | None,
    notes: Sequence[str],
) -> Iterator[str]:
    yield from ending(loaded.run)
    yield from loaded.run.warnings
    yield from loaded.panel.warnings
    if loaded.has_steps:  # with nothing to compare, what was not compared with is no news
        yield from notes
    for base in bases:
        problems = (*base.run.warnings, *base.panel.warnings)
        yield from (f"baseline {base.run.name}: {problem}" for problem in problems)
    if accounting is not None:
        yield from accounting.notes
        yield from _samples_problems(loaded, bases, accounting)
    if others:
        names = ", ".join(one.run.name for one in others)
        yield f"taken together with {names}; ranks, phases and figures show {loaded.run.name} only"
    yield from _rehearsal(loaded)


def _samples_problems(
    loaded: Loaded, bases: Sequence[Loaded], accounting: Accounting
) -> Iterator[str]:
    """Why throughput is unknown, and what to do about it."""
    unknown = accounting.samples_per_step is None
    unknown = unknown or (bool(bases) and accounting.kind == "estimated")
    if not unknown:
        return
    reasons = [one.samples_problem for one in (loaded, *bases) if one.samples_problem]
    reason = f" ({reasons[0]})" if reasons else ""
    yield (
        f"the samples of a step are not known{reason}: set them with diag.samples(n) in the "
        "script, or diag run --samples-per-step N"
    )


def _rehearsal(loaded: Loaded) -> Iterator[str]:
    if not loaded.is_rehearsal:
        return
    yield (
        "a rehearsal on CPU ranks: it shows which ranks wait and for what, not how fast GPUs "
        "would be"
    )
    cores = loaded.cores
    if cores is not None and loaded.ranks_per_node > cores:
        shared = f"{loaded.ranks_per_node} ranks share {f.plural(cores, 'core')}"
        yield f"{shared}: they also wait for each other's CPU"


def _lost(run: Run, bases: Sequence[Loaded]) -> tuple[str, ...]:
    of_bases = (f"baseline {one.run.name}: {lost}" for one in bases for lost in one.run.lost)
    return (*run.lost, *of_bases)
