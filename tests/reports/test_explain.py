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
from diag.record.schema import STREAMS, StepFlag
from diag.record.store import RunDir
from diag.reports.corewait import waiting_share
from diag.reports.explain import explain
from diag.reports.loaded import load
from diag.reports.model import Report
from diag.reports.render.json import render_json
from diag.reports.render.md import render_md
from diag.reports.render.text import render_text
from helpers.cases import local_ms, phase
from helpers.records import START_NS, released_together, write_rows, write_run

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


def test_the_launchers_backend_is_named_where_torch_does_not_say(tmp_path: Path) -> None:
    said = explained(slow_run(tmp_path, rank_facts={"backend": "undefined"}), baseline(tmp_path))
    assert said.run.backend == "gloo"


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


# -- waiting for cores --------------------------------------------------------------------


def gauges(ranks: int, share: float, seconds: int = 40) -> dict[int, list[tuple[Any, ...]]]:
    """A reading a second; `share` of the time the main thread waited for a core."""
    names = STREAMS["gauges"].names
    rows = [
        {"time_ns": START_NS + s * 10**9, "runqueue_wait_ns": int(share * s * 1e9)}
        for s in range(-3, seconds)
    ]
    each = [tuple(row.get(name) for name in names) for row in rows]
    return dict.fromkeys(range(ranks), each)


def hindered(runs_dir: Path, share: float, **options: Any) -> Path:
    """Four ranks whose backward takes 16 ms longer than the baseline's, of 77 ms a step."""
    local = local_ms(4, 120)
    local[:, :, phase("backward")] += 16.0
    return record(runs_dir, "hindered", local, gauges=gauges(4, share), **options)


def test_a_measured_wait_for_cores_explains_a_loss_of_all_ranks(tmp_path: Path) -> None:
    facts = {"cores": 4, "threads": 2, "rehearsal": False}
    base = baseline(tmp_path, gauges=gauges(1, 0.01))
    report = explained(hindered(tmp_path, 0.16, run_facts=facts), base)
    (found,) = report.findings
    assert (found.code, found.severity) == ("cpu-oversubscribed", "critical")
    # 16% of the step, less 1% of an ideal step's 61.5 ms.
    assert found.ms == pytest.approx(0.16 * 77.8 - 0.6, abs=0.2)
    assert found.location is None  # no line of the script is to blame
    assert "4 ranks with 2 threads each share 4 cores" in report.verdict


@pytest.mark.parametrize(
    ("share", "usual"),
    [(0.002, 0.0), (0.16, 0.9), (0.16, None)],
    ids=["hardly any", "the baseline too", "not measured there"],
)
def test_a_wait_that_explains_nothing_is_no_finding(
    tmp_path: Path, share: float, usual: float | None
) -> None:
    base = baseline(tmp_path, gauges=None if usual is None else gauges(1, usual))
    report = explained(hindered(tmp_path, share), base)
    assert codes(report) == []
    assert "each rank computes 16.1 ms longer" in report.verdict


@pytest.mark.parametrize(
    ("at", "share"),
    [
        ([0.5, 1.5, 2.5], 0.1),  # inside
        ([-0.5, 0.5], 0.1),  # one inside, one before
        ([0.5, 9.0], 0.1),  # one inside, one after
        ([-3.0, 9.0], 0.1),  # around
        ([0.5], None),
        ([], None),
    ],
)
def test_the_share_is_between_the_readings_nearest_to_the_steps(
    tmp_path: Path, at: list[float], share: float | None
) -> None:
    """80 steps of 40 ms: 3.2 s, of which the first 40 ms are warm-up."""
    names = STREAMS["gauges"].names
    rows = [
        {"time_ns": START_NS + int(s * 1e9), "runqueue_wait_ns": int(0.1 * (s + 5) * 1e9)}
        for s in at
    ]
    readings = {0: [tuple(row.get(name) for name in names) for row in rows]}
    steps = np.zeros((1, 80, 7))
    steps[:, :, phase("forward")] = 40.0
    path = record(tmp_path, "run", steps)
    write_rows(RunDir(path).rank_dir(0), "gauges", readings[0])
    found = waiting_share(load(read_run(path)))
    assert found == (None if share is None else pytest.approx(share, rel=1e-3))


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
    assert report.verdict.startswith("No step was recorded: it takes two optimizer steps")
    text = " ".join(render_text(report).split())
    assert "throughput none: no step was recorded steps none recorded" in text
    assert "baseline none: this run has no steady step to compare" in text
    assert "how to count samples" not in text
    assert report.speedup.value is None
    assert codes(report) == ["short-run"]
    assert report.step_series is None
    assert report.baseline_command is None


def test_a_run_that_failed_before_its_first_step_says_what_it_failed_with(tmp_path: Path) -> None:
    error = {"type": "ValueError", "message": "no data", "file": "train.py", "line": 3}
    facts: dict[str, Any] = {"exit_code": 1}
    run = record(
        tmp_path, "idle", local_ms(2, 1), run_facts=facts, rank_facts={"error": error, "end_ns": 1}
    )
    for path in run.glob("ranks/*/steps*"):
        path.unlink()
    report = explained(run, notes=["other is no baseline"])
    assert report.verdict == (
        "No step was recorded: the run failed with exit code 1: rank 0, ValueError: no data "
        "(train.py:3)."
    )
    assert "other is no baseline" not in report.warnings


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
