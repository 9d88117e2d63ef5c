"""From run directories to a Report: the rooms joined, on records whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from diag.record.reader import read_run
from diag.record.schema import StepFlag
from diag.reports.explain import explain
from diag.reports.model import Report
from diag.reports.render.json import render_json
from diag.reports.render.md import render_md
from diag.reports.render.text import render_text
from helpers.cases import local_ms, phase
from helpers.records import released_together, write_run

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/schemas/scaling-report-1.json").read_text("utf-8")
)


def ns(ms: np.ndarray) -> np.ndarray:
    return (ms * 1e6).astype(np.int64)


def record(
    runs_dir: Path,
    name: str,
    local: np.ndarray,
    *,
    transfer_ms: float = 0.2,
    global_batch: float | None = 128,
    **options: Any,
) -> Path:
    """A run whose steps take these local times; the global batch is split evenly."""
    ranks = len(local)
    phases = released_together(ns(local), int(transfer_ms * 1e6) if ranks > 1 else 0)
    samples = None if global_batch is None else int(global_batch / ranks)
    return write_run(runs_dir, phases, name=name, samples=samples, **options)


def baseline(runs_dir: Path, name: str = "base", **options: Any) -> Path:
    return record(runs_dir, name, 4 * local_ms(1, 80, seed=7), **options)


def slow_run(runs_dir: Path, name: str = "slow", **options: Any) -> Path:
    local = local_ms(4, 120)
    local[2, :, phase("backward")] += 18.0
    return record(runs_dir, name, local, **options)


def explained(run: Path, *bases: Path, **options: Any) -> Report:
    report = explain(read_run(run), [read_run(base) for base in bases], **options)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(render_json(report)))
    assert render_text(report)
    assert render_md(report)
    return report


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def test_a_slow_rank_is_explained_against_its_baseline(tmp_path: Path) -> None:
    report = explained(slow_run(tmp_path), baseline(tmp_path))
    assert codes(report) == ["slow-rank"]
    assert report.term("straggler").ms == pytest.approx(18.0, abs=0.5)
    assert report.term("straggler").ranks == (2,)
    assert report.speedup.value == pytest.approx(4 * 61.5 / 79.7, rel=0.02)
    assert report.speedup.low is not None
    assert report.verdict.startswith(
        "3.1x on 4 CPU ranks (77% efficient): rank 2 is slow in backward"
    )
    assert report.run.scaling == "strong"
    assert report.baseline.kind == "measured"
    assert report.baseline_command is None
    assert [row.rank for row in report.per_rank] == [0, 1, 2, 3]
    assert report.step_series is not None
    assert len(report.step_series.index) == 120
    assert {series.rank for series in report.memory_series} == {0, 1, 2, 3}


def test_the_terms_add_up_to_the_lost_time(tmp_path: Path) -> None:
    report = explained(slow_run(tmp_path, transfer_ms=3.0), baseline(tmp_path))
    assert report.step_measured_ms is not None
    assert report.step_ideal_ms is not None
    lost = report.step_measured_ms - report.step_ideal_ms
    assert sum(term.ms or 0.0 for term in report.terms) == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize(
    ("global_batch", "scaling"), [(128, "strong"), (130, "strong"), (512, "weak"), (256, "other")]
)
def test_scaling_is_named_by_the_batches(tmp_path: Path, global_batch: float, scaling: str) -> None:
    run = slow_run(tmp_path, global_batch=global_batch)
    assert explained(run, baseline(tmp_path)).run.scaling == scaling


def test_a_clean_run_has_nothing_wrong(tmp_path: Path) -> None:
    report = explained(record(tmp_path, "clean", local_ms(4, 120)), baseline(tmp_path))
    assert report.findings == ()
    assert report.verdict.startswith("Nothing wrong: ")


def test_a_rehearsal_never_claims_a_gpus_numbers(tmp_path: Path) -> None:
    facts = {"cores": 2}
    report = explained(slow_run(tmp_path, run_facts=facts), baseline(tmp_path))
    assert report.rehearsal
    assert "not a GPU's numbers" in report.verdict
    assert "CPU ranks" in report.verdict
    assert any("4 ranks share 2 cores" in warning for warning in report.warnings)


def test_a_run_on_gpus_is_no_rehearsal(tmp_path: Path) -> None:
    facts = {"device": "cuda", "rehearsal": False}
    report = explained(slow_run(tmp_path, run_facts=facts), baseline(tmp_path, run_facts=facts))
    assert "CPU" not in report.verdict
    assert "rehearsal" not in " ".join(report.warnings)


# -- without a baseline -------------------------------------------------------------------


def test_without_a_baseline_it_is_an_upper_bound_and_says_how_to_measure(tmp_path: Path) -> None:
    report = explained(slow_run(tmp_path), command="diag run --gpus 1 train.py")
    assert report.baseline.kind == "estimated"
    assert report.verdict.startswith("No baseline: at most 3.1x on 4 CPU ranks (at most 77%")
    assert "without it at most 4.0x" in report.verdict
    assert report.baseline_command == "diag run --gpus 1 train.py"
    unknown = [term.term for term in report.terms if term.ms is None]
    assert unknown == ["compute", "optimizer", "data", "copy", "host"]
    assert codes(report) == ["slow-rank"]
    assert "diag run --gpus 1 train.py" in render_text(report)


def test_nothing_systemic_is_found_on_an_estimate(tmp_path: Path) -> None:
    local = local_ms(4, 120)
    local[:, :, phase("data")] += 30.0
    assert codes(explained(record(tmp_path, "starved", local))) == []


def test_a_baseline_without_steady_steps_is_passed_over(tmp_path: Path) -> None:
    empty = record(tmp_path, "empty", 4 * local_ms(1, 1))
    good = baseline(tmp_path)
    assert explained(slow_run(tmp_path), empty, good).baseline.name == "base"


# -- samples ------------------------------------------------------------------------------


def test_unknown_samples_make_throughput_null_and_say_how_to_set_them(tmp_path: Path) -> None:
    facts = {"samples_problem": "two tensors disagree: 32 and 64"}
    run = slow_run(tmp_path, global_batch=None, rank_facts=facts)
    report = explained(run, baseline(tmp_path, global_batch=None))
    assert report.throughput.run is None
    assert report.baseline.kind == "estimated"
    (warning,) = [w for w in report.warnings if "--samples-per-step" in w]
    assert "two tensors disagree: 32 and 64" in warning


def test_stated_samples_take_their_place(tmp_path: Path) -> None:
    facts = {"samples_per_step": 128}
    run = slow_run(tmp_path, global_batch=None, run_facts=facts)
    report = explained(run, baseline(tmp_path, global_batch=None, run_facts=facts))
    assert report.baseline.kind == "measured"
    assert report.run.samples_per_step == 128
    assert report.throughput.run == pytest.approx(128 / 0.0797, rel=0.02)


# -- repeats ------------------------------------------------------------------------------


def test_repeats_on_both_sides_give_intervals_between_runs(tmp_path: Path) -> None:
    runs = [read_run(slow_run(tmp_path, f"slow{i}")) for i in range(3)]
    bases = [read_run(baseline(tmp_path, f"base{i}")) for i in range(3)]
    report = explain(runs[0], bases, repeats=runs[1:])
    assert report.interval_kind == "between-runs"
    assert report.baseline.runs == 3
    assert any("slow1, slow2" in warning for warning in report.warnings)


# -- what others waited for ---------------------------------------------------------------


def test_a_checkpoint_of_rank_0_is_found_outside_the_terms(tmp_path: Path) -> None:
    local = local_ms(4, 120)
    local[0, 19::20, phase("host")] += 400.0
    flags = np.zeros((4, 120), np.int64)
    flags[0, 19::20] = StepFlag.CHECKPOINT
    report = explained(record(tmp_path, "saving", local, flags=flags), baseline(tmp_path))
    assert codes(report) == ["rank0-work"]
    assert report.run.steps_excluded["checkpoint"] == 6
    assert report.wall.checkpoint_waited_s == pytest.approx(2.4, rel=0.05)
    assert report.findings[0].ms == pytest.approx(1e3 * report.wall.checkpoint_waited_s / 120)
    assert "in steady steps; besides, the others wait while rank 0" in report.verdict


def test_periodic_work_is_cured_in_its_own_steps(tmp_path: Path) -> None:
    local = local_ms(4, 120)
    local[0, 9::10, phase("host")] += 80.0
    report = explained(record(tmp_path, "logging", local), baseline(tmp_path))
    assert codes(report) == ["rank0-work"]
    assert report.term("straggler").would_save_ms == pytest.approx(8.0, abs=0.5)
    assert report.term("straggler").would_save_ms == report.findings[0].would_save_ms


def test_ignored_findings_leave_the_terms_alone(tmp_path: Path) -> None:
    report = explained(slow_run(tmp_path), baseline(tmp_path), ignore=["slow-rank"])
    assert report.findings == ()
    assert report.term("straggler").ms == pytest.approx(18.0, abs=0.5)
    assert "the slowest rank costs 17.9 ms of every 79.6 ms step" in report.verdict


# -- topologies ---------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{"gradient_groups": [2]}, {"local_sgd": True}])
def test_an_unsupported_topology_has_phases_but_no_terms(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    report = explained(slow_run(tmp_path, rank_facts=facts), baseline(tmp_path), command="x")
    assert codes(report) == ["unsupported-topology"]
    assert all(term.ms is None for term in report.terms)
    assert len(report.per_rank) == 4
    assert report.speedup.value == pytest.approx(3.09, abs=0.05)  # throughputs need no identity
    assert report.baseline_command is None


# -- bad records --------------------------------------------------------------------------


def test_a_run_that_never_stepped(tmp_path: Path) -> None:
    run = record(tmp_path, "idle", local_ms(2, 1))
    for path in run.glob("ranks/*/steps*"):
        path.unlink()
    report = explained(run, baseline(tmp_path), command="x")
    assert report.verdict.startswith("No optimizer step was recorded on every rank")
    assert report.speedup.value is None
    assert codes(report) == ["short-run"]
    assert report.step_series is None
    assert report.baseline_command is None


def test_a_run_that_ended_before_its_warm_up(tmp_path: Path) -> None:
    flags = StepFlag.WARM_UP
    run = record(tmp_path, "brief", local_ms(2, 3), flags=flags)
    report = explained(run, baseline(tmp_path))
    assert report.verdict.startswith("Too short to judge: 3 steps recorded, none of them steady")
    assert report.step_measured_ms is None
    assert codes(report) == ["short-run"]


def test_few_steps_are_called_too_few(tmp_path: Path) -> None:
    report = explained(record(tmp_path, "brief", local_ms(4, 9)), baseline(tmp_path))
    assert "too few to judge by" in report.verdict
    assert codes(report) == ["short-run"]
    assert report.speedup.value is not None


def remove_a_rank(run: Path) -> None:
    for path in sorted(run.glob("ranks/00003-0/*"), reverse=True):
        path.unlink()
    (run / "ranks/00003-0").rmdir()


def cut_a_stream(run: Path) -> None:
    (path,) = run.glob("ranks/00001-0/steps*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_run_json(run: Path) -> None:
    (run / "run.json").unlink()


def break_rank_json(run: Path) -> None:
    (run / "ranks/00000-0/rank.json").write_text('{"rank": ')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_a_rank, "rank 3 left no record"),
        (cut_a_stream, "rank 1"),
        (drop_run_json, "run.json is missing"),
        (break_rank_json, "rank.json is damaged"),
    ],
)
def test_damage_is_told_and_survived(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    run = slow_run(tmp_path)
    damage(run)
    report = explained(run, baseline(tmp_path))
    assert words in " ".join((*report.warnings, *report.lost))


def test_ranks_with_different_step_counts_are_told(tmp_path: Path) -> None:
    run = slow_run(tmp_path)
    fewer = slow_run(tmp_path / "other", "slow")
    short = record(tmp_path / "short", "short", local_ms(4, 90))
    assert fewer
    for path in short.glob("ranks/00001-0/*"):
        path.replace(run / "ranks/00001-0" / path.name)
    report = explained(run, baseline(tmp_path))
    (warning,) = [w for w in report.warnings if "different numbers of steps" in w]
    assert "90" in warning
    assert report.step_series is not None
    assert len(report.step_series.index) == 90


def test_a_run_that_still_goes_on_says_so(tmp_path: Path) -> None:
    run = read_run(slow_run(tmp_path))
    running = replace(run, running=True, warnings=("the run is still going on",))
    report = explain(running, [read_run(baseline(tmp_path))])
    assert "the run is still going on" in report.warnings


def test_notes_and_the_baselines_losses_are_passed_on(tmp_path: Path) -> None:
    base = baseline(tmp_path)
    break_rank_json(base)
    report = explained(slow_run(tmp_path), base, notes=["compared by force"])
    assert "compared by force" in report.warnings
    assert any(lost.startswith("baseline base: ") for lost in report.lost)


def test_the_probes_own_cost_is_measured_on_used_steps(tmp_path: Path) -> None:
    report = explained(slow_run(tmp_path, probe_ns=400_000), baseline(tmp_path))
    assert report.probe_overhead.share == pytest.approx(0.4 / 79.7, rel=0.02)


ODD = (None, True, -1, 0, 1e308, 2**62, "x", "\ud800", [], [1, "a"], {"a": None})


@pytest.mark.parametrize("name", ["run.json", "ranks/00000-0/rank.json"])
def test_no_fact_can_break_a_report(tmp_path: Path, name: str) -> None:
    """Records of other versions, or edited by hand: every fact in turn is of another kind."""
    run = record(tmp_path, "odd", local_ms(2, 20))
    base = read_run(record(tmp_path, "base", local_ms(1, 20)))
    facts = json.loads((run / name).read_text("utf-8"))
    for number, key in enumerate(facts):
        if key == "schema":  # refusing a newer one is the reader's, and tested there
            continue
        (run / name).write_text(json.dumps({**facts, key: ODD[number % len(ODD)]}), "utf-8")
        report = explain(read_run(run), [base])
        assert render_text(report)
        assert json.loads(render_json(report))
