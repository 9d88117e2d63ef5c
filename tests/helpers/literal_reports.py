"""Reports written by hand: what renderers are tested on, without any accounting."""

from __future__ import annotations

import shlex
from dataclasses import replace

from diag.reports.model import (
    TERMS,
    BaselineSummary,
    Estimate,
    Finding,
    Location,
    MemorySeries,
    Pop,
    ProbeOverhead,
    RankRow,
    Report,
    RunSummary,
    StepSeries,
    Term,
    TermName,
    Throughput,
    Wall,
)

IDEAL_MS = 60.0
# Sums to 27.0: a step of 87 ms, 4 ranks, 2.76x.
LOSS_MS: dict[TermName, float] = {
    "compute": 1.1,
    "optimizer": 0.0,
    "data": 0.4,
    "copy": 0.0,
    "host": 0.3,
    "straggler": 18.2,
    "jitter": 1.6,
    "serialization": 0.0,
    "transfer": 5.3,
    "residual": 0.1,
}


def term(name: TermName, ms: float | None, ideal_ms: float, measured_ms: float, n: int) -> Term:
    """A term as accounting would give it; a cure saves 95% of a positive term."""
    if ms is None:
        return Term(name, None, None, None, None, None, None)
    saves = None if name == "residual" else max(0.0, 0.95 * ms)
    return Term(
        term=name,
        ms=ms,
        low=ms - 0.3,
        high=ms + 0.3,
        share=ms / measured_ms,
        would_save_ms=saves,
        speedup_without=None if saves is None else n * ideal_ms / (measured_ms - saves),
        ranks=(2,) if name == "straggler" else (),
        phase="backward" if name == "straggler" else None,
    )


def terms(loss: dict[TermName, float | None], ideal_ms: float, n: int) -> tuple[Term, ...]:
    measured = ideal_ms + sum(ms for ms in loss.values() if ms is not None)
    return tuple(term(name, loss.get(name), ideal_ms, measured, n) for name in TERMS)


def row(rank: int, backward_ms: float, measured_ms: float = 87.0, node: int = 0) -> RankRow:
    local = {
        "data": 0.4,
        "copy": 0.0,
        "forward": 20.3,
        "backward": backward_ms,
        "optimizer": 0.6,
        "host": 0.4,
    }
    phases = {**local, "exposed_comm": measured_ms - sum(local.values())}
    return RankRow(rank, node, phases, 92.0, 1_610_612_736 + rank * 4_194_304)


def slow_rank_finding() -> Finding:
    return Finding(
        code="slow-rank",
        severity="critical",
        title="Rank 2 is slow in backward",
        ranks=(2,),
        phase="backward",
        ms=18.2,
        term="straggler",
        location=None,
        evidence=(
            "rank 2 spends 58.4 ms of each step in backward, the typical rank 40.2 ms",
            "the others wait for it: their exposed communication is 25 ms, its own 6.9 ms",
        ),
        hint="Look at what rank 2's GPU shares: another job, its clock, its PCIe slot.",
        docs="docs/codes/slow-rank.md",
        would_save_ms=17.3,
    )


def straggler_report() -> Report:
    """4 GPUs, one slow in backward, against a measured baseline."""
    backward = {0: 40.1, 1: 40.2, 2: 58.4, 3: 40.3}
    return Report(
        diag_version="0.1.0",
        run=RunSummary(
            name="resnet-4",
            world_size=4,
            nodes=1,
            device="cuda",
            backend="nccl",
            mode="attach",
            strategy="ddp",
            scaling="strong",
            steps_used=128,
            steps_excluded={"warm-up": 20, "checkpoint": 2},
            samples_per_step=32.0,
        ),
        baseline=BaselineSummary("resnet-1", 1, 32.0, "measured", 1),
        throughput=Throughput("samples", 367.8, 133.3),
        speedup=Estimate(2.7586, 2.71, 2.80),
        speedup_ideal=4.0,
        efficiency=Estimate(0.6897, 0.678, 0.70),
        interval_level=0.95,
        interval_kind="within-run",
        step_measured_ms=87.0,
        step_ideal_ms=IDEAL_MS,
        terms=terms(dict(LOSS_MS), IDEAL_MS, 4),
        pop=Pop(0.9, 0.8, 1.0, 0.958, 0.6897),
        wall=Wall(6.2, 3.1, 11.1, 1.9, 0.0, 0.8, 0.4, 23.5, 1.4, 0.0, 1.9),
        per_rank=tuple(row(rank, ms) for rank, ms in backward.items()),
        findings=(slow_rank_finding(),),
        verdict=(
            "2.8x on 4 ranks (69% efficient): rank 2 is slow in backward and costs 18.2 ms "
            "of every 87.0 ms step; without it 3.4x."
        ),
        warnings=(),
        lost=(),
        probe_overhead=ProbeOverhead(0.0021, "the probes' own time over the time of used steps"),
        step_series=StepSeries(
            index=tuple(range(150)),
            ms=tuple(87.0 + (90 if i < 4 else 0) + (i % 7) - 3 for i in range(150)),
            excluded=tuple(
                "warm-up" if i < 20 else "checkpoint" if i in (70, 140) else None
                for i in range(150)
            ),
        ),
        memory_series=tuple(
            MemorySeries(
                rank,
                tuple(float(s) for s in range(24)),
                tuple(
                    1_000_000_000 + min(s, 6) * 100_000_000 + rank * 4_194_304 for s in range(24)
                ),
            )
            for rank in range(4)
        ),
    )


def clean_report() -> Report:
    """2 CPU ranks, nothing wrong: a rehearsal."""
    loss: dict[TermName, float | None] = {
        "compute": 0.4, "optimizer": 0.1, "data": 0.0, "copy": 0.0, "host": 0.1,
        "straggler": 0.2, "jitter": 0.3, "serialization": 0.0, "transfer": 0.5, "residual": 0.0,
    }  # fmt: skip
    base = straggler_report()
    return replace(
        base,
        run=replace(
            base.run, name="demo", world_size=2, device="cpu", backend="gloo", steps_excluded={}
        ),
        baseline=BaselineSummary("demo-baseline", 1, 32.0, "measured", 1),
        throughput=Throughput("samples", 519.5, 266.7),
        speedup=Estimate(1.948, 1.93, 1.96),
        speedup_ideal=2.0,
        efficiency=Estimate(0.974, 0.965, 0.98),
        step_measured_ms=61.6,
        step_ideal_ms=60.0,
        terms=tuple(replace(t, ranks=(), phase=None) for t in terms(loss, 60.0, 2)),
        pop=Pop(0.99, 0.993, 1.0, 0.991, 0.974),
        per_rank=tuple(row(rank, ms, 61.6) for rank, ms in ((0, 38.0), (1, 38.2))),
        findings=(),
        verdict=(
            "Nothing wrong: 1.95x on 2 CPU ranks (97% efficient). A rehearsal on CPU: these are "
            "not a GPU's numbers."
        ),
        probe_overhead=ProbeOverhead(None, "unknown"),
        rehearsal=True,
        memory_series=base.memory_series[:2],
    )


def estimated_report() -> Report:
    """No baseline: an upper bound, and systemic terms unknown."""
    loss: dict[TermName, float | None] = {
        "compute": None, "optimizer": None, "data": None, "copy": None, "host": None,
        "straggler": 18.2, "jitter": 1.6, "serialization": 0.0, "transfer": 5.3, "residual": 0.1,
    }  # fmt: skip
    base = straggler_report()
    return replace(
        base,
        baseline=BaselineSummary(None, 1, None, "estimated", 0),
        throughput=Throughput("samples", 367.8, None),
        speedup=Estimate(2.8414, 2.79, 2.88),
        efficiency=Estimate(0.7103, 0.70, 0.72),
        step_ideal_ms=61.8,
        terms=terms(loss, 61.8, 4),
        pop=Pop(None, 0.8, 1.0, 0.958, None),
        wall=replace(base.wall, end_to_end_speedup=None),
        verdict=(
            "No baseline: at most 2.8x on 4 ranks (at most 71% efficient): rank 2 is slow in "
            "backward and costs 18.2 ms of every 87.0 ms step; without it at most 3.6x."
        ),
        baseline_command=(
            "diag run --gpus 1 --device cuda --max-steps 60 --name resnet-4-baseline "
            "train.py --data '/data/image net' --epochs 3 --learning-rate 0.1"
        ),
        warnings=("no baseline: the ideal step is the typical rank's own work, an upper bound",),
    )


def superlinear_report() -> Report:
    """Faster than ideal: terms are negative, the efficiency is above 1."""
    loss: dict[TermName, float | None] = dict.fromkeys(TERMS, 0.0)
    loss.update(compute=-9.0, data=-1.0, transfer=2.0, jitter=0.5)
    base = clean_report()
    return replace(
        base,
        run=replace(base.run, name="cache-fits"),
        speedup=Estimate(2.2857, 2.2, 2.35),
        efficiency=Estimate(1.1429, 1.1, 1.18),
        step_measured_ms=52.5,
        step_ideal_ms=60.0,
        terms=tuple(replace(t, ranks=(), phase=None) for t in terms(loss, 60.0, 2)),
        pop=Pop(1.19, 0.99, 1.0, 0.96, 1.1429),
        verdict=(
            "Nothing wrong: 2.3x on 2 ranks (114% efficient). Better than linear: make sure that "
            "nothing disturbed the baseline."
        ),
    )


def unknown_report() -> Report:
    """A run too short to judge: every number unknown."""
    base = clean_report()
    return replace(
        base,
        run=replace(
            base.run,
            name="short",
            steps_used=0,
            steps_excluded={"warm-up": 3},
            samples_per_step=None,
        ),
        throughput=Throughput("samples", None, None),
        speedup=Estimate(None),
        efficiency=Estimate(None),
        step_measured_ms=None,
        step_ideal_ms=None,
        terms=tuple(Term(name, None, None, None, None, None, None) for name in TERMS),
        pop=Pop(None, None, None, None, None),
        wall=Wall(*(None,) * 11),
        per_rank=(),
        findings=(
            Finding(
                "short-run",
                "info",
                "Only 3 steps were recorded",
                (),
                None,
                None,
                None,
                None,
                ("3 steps, all of them warm-up",),
                "Run at least 40 steps.",
                "docs/codes/short-run.md",
                None,
            ),
        ),
        verdict="Too short to judge: 3 steps, all of them warm-up.",
        warnings=("rank 1 has 3 steps, rank 0 has 4: the common 3 are used",),
        lost=("ranks/00001-0/steps.arrows: 17 bytes after the last whole batch",),
        step_series=None,
        memory_series=(),
    )


HOSTILE = "<script>alert('x')</script> $\\frac{1}{0}$ & \x1b[31m\u202e{{7*7}} 名前 ]]>"


def hostile_report() -> Report:
    """Names and paths that try to break out of every format."""
    base = straggler_report()
    finding = replace(
        base.findings[0],
        title=HOSTILE,
        evidence=(HOSTILE,),
        hint=HOSTILE,
        location=Location(f"/tmp/{HOSTILE}.py", 12),
    )
    return replace(
        base,
        run=replace(
            base.run, name=HOSTILE, backend=HOSTILE, strategy=HOSTILE, steps_excluded={HOSTILE: 3}
        ),
        baseline=replace(base.baseline, name=HOSTILE),
        findings=(finding,),
        verdict=HOSTILE,
        warnings=(HOSTILE,),
        lost=(HOSTILE,),
        throughput=replace(base.throughput, unit=HOSTILE),
        probe_overhead=ProbeOverhead(0.001, HOSTILE),
        baseline_command=shlex.join(["diag", "run", HOSTILE]),
        step_series=replace(
            base.step_series,
            excluded=tuple(HOSTILE if e else None for e in base.step_series.excluded),
        )
        if base.step_series
        else None,
    )


def many_ranks_report(world_size: int = 64) -> Report:
    """64 ranks on 8 nodes; ranks 17 and 40 are slow."""
    base = straggler_report()
    slow = {17: 58.4, 40: 57.9}
    rows = tuple(
        row(rank, slow.get(rank, 40.0 + (rank * 7 % 10) / 20), node=rank // 8)
        for rank in range(world_size)
    )
    return replace(
        base,
        run=replace(base.run, name="big", world_size=world_size, nodes=world_size // 8),
        speedup=Estimate(44.1, 43.5, 44.8),
        speedup_ideal=float(world_size),
        per_rank=rows,
        memory_series=tuple(
            replace(base.memory_series[0], rank=rank) for rank in range(world_size)
        ),
    )
