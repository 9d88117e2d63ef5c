"""Every detector on a planted cause and on a near miss of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diag.codes import CATALOGUE
from diag.record.schema import StepFlag
from diag.reports.findings import DETECTORS, find
from diag.reports.findings.case import Case, CoreWait, Traffic, severity
from diag.reports.findings.comm_bound import comm_bound
from diag.reports.findings.cpu_oversubscribed import cpu_oversubscribed
from diag.reports.findings.data_bound import data_bound
from diag.reports.findings.jitter import jitter
from diag.reports.findings.rank0_work import rank0_work
from diag.reports.findings.short_run import short_run
from diag.reports.findings.slow_rank import slow_rank
from diag.reports.findings.small_batch import small_batch
from diag.reports.findings.unsupported_topology import unsupported_topology
from diag.reports.model import Location
from helpers.cases import Planted, findings_of, local_ms, phase

STEPS = 120


def text_of(evidence: tuple[str, ...]) -> str:
    return " ".join(evidence)


# -- slow-rank ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data", "copy", "forward", "backward", "optimizer", "host"])
def test_a_slow_rank_is_named_with_its_phase(name: str) -> None:
    local = local_ms(4, STEPS)
    local[2, :, phase(name)] += 18.0
    (found,) = findings_of(slow_rank, local)
    assert (found.code, found.severity, found.term) == ("slow-rank", "critical", "straggler")
    assert (found.ranks, found.phase) == ((2,), name)
    assert found.ms == pytest.approx(18.0, abs=0.5)
    assert found.would_save_ms == pytest.approx(18.0, abs=1.5)
    assert "Rank 2" in found.title


def test_equally_slow_ranks_share_one_finding() -> None:
    local = local_ms(6, STEPS)
    local[[1, 4], :, phase("backward")] += 18.0
    (found,) = findings_of(slow_rank, local)
    assert found.ranks == (1, 4)
    assert found.title == "Ranks 1 and 4 are slow in backward"
    assert found.would_save_ms == pytest.approx(18.0, abs=2.0)


def test_two_causes_are_told_apart_and_the_hidden_one_says_so() -> None:
    local = local_ms(6, STEPS)
    local[1, :, phase("backward")] += 18.0
    local[3, :, phase("data")] += 7.0
    worst, hidden = findings_of(slow_rank, local)
    assert (worst.ranks, worst.phase) == ((1,), "backward")
    assert worst.would_save_ms == pytest.approx(11.0, abs=1.0)
    assert (hidden.ranks, hidden.phase) == ((3,), "data")
    assert hidden.ms == pytest.approx(7.0, abs=0.5)
    assert hidden.would_save_ms == pytest.approx(0.0, abs=0.1)
    assert "hidden behind rank 1" in text_of(hidden.evidence)


def test_more_work_is_given_as_the_reason() -> None:
    local = local_ms(4, STEPS)
    local[2, :, phase("backward")] += 18.0
    tokens = np.array([[1000.0], [1000.0], [1400.0], [1000.0]])
    (found,) = findings_of(slow_rank, local, panel_options={"tokens": tokens})
    assert "processes 1400 tokens a step, the others 1000" in text_of(found.evidence)


@pytest.mark.parametrize("seed", range(5))
def test_equal_noisy_ranks_are_not_slow(seed: int) -> None:
    assert findings_of(slow_rank, local_ms(4, STEPS, seed, noise=0.05)) == ()


def test_a_slow_rank_below_one_percent_is_not_worth_a_finding() -> None:
    local = local_ms(4, STEPS, noise=0.001)
    local[2, :, phase("host")] += 0.4
    assert findings_of(slow_rank, local) == ()


def test_all_ranks_slow_alike_is_no_slow_rank() -> None:
    local = local_ms(4, STEPS)
    local[:, :, phase("backward")] += 18.0
    assert findings_of(slow_rank, local) == ()


# -- rank0-work ---------------------------------------------------------------------------


def every(k: int, ms: float, rank: int = 0, name: str = "host") -> np.ndarray:
    local = local_ms(4, STEPS)
    local[rank, k - 1 :: k, phase(name)] += ms
    return local


@pytest.mark.parametrize("k", [2, 5, 10, 25])
def test_periodic_work_of_one_rank(k: int) -> None:
    local = every(k, 20.0 * k)
    (found,) = findings_of(rank0_work, local)
    assert (found.code, found.ranks, found.phase) == ("rank0-work", (0,), "host")
    assert found.severity == "critical"
    assert f"every {k} steps" in text_of(found.evidence)
    planted = 20.0 * k * (STEPS // k) / (STEPS - 1)  # the first step is never used
    assert found.ms == pytest.approx(planted, rel=0.03)
    assert found.would_save_ms == pytest.approx(planted, rel=0.03)
    assert findings_of(slow_rank, local) == ()


def test_the_noise_of_ordinary_steps_is_not_called_jitter_beside_it() -> None:
    assert findings_of(jitter, every(10, 80.0)) == ()


def test_work_in_most_steps_is_a_slow_rank() -> None:
    local = local_ms(4, STEPS)
    local[0, np.arange(STEPS) % 4 != 0, phase("host")] += 20.0
    assert findings_of(rank0_work, local) == ()
    (found,) = findings_of(slow_rank, local)
    assert found.ranks == (0,)


def test_irregular_work_is_a_slow_rank() -> None:
    steps = np.cumsum([3, 17, 2, 9, 1, 22, 5, 13, 1, 29, 4, 6])
    local = local_ms(4, STEPS)
    local[0, steps, phase("host")] += 200.0
    assert findings_of(rank0_work, local) == ()
    assert [f.ranks for f in findings_of(slow_rank, local)] == [(0,)]


def test_a_loader_that_runs_dry_every_k_steps_is_a_slow_rank_in_data() -> None:
    local = every(8, 120.0, rank=3, name="data")
    assert findings_of(rank0_work, local) == ()
    (found,) = findings_of(slow_rank, local)
    assert (found.ranks, found.phase) == ((3,), "data")


def test_periodic_work_on_all_ranks_is_nobodys_fault() -> None:
    local = local_ms(4, STEPS)
    local[:, 9::10, phase("host")] += 100.0
    assert findings_of(rank0_work, local) == ()
    assert findings_of(slow_rank, local) == ()


def flagged(local: np.ndarray, steps: slice, flag: StepFlag) -> dict[str, object]:
    flags = np.zeros(local.shape[:2], np.int64)
    flags[0, steps] = flag
    return {"flags": flags}


@pytest.mark.parametrize(
    ("flag", "word"), [(StepFlag.CHECKPOINT, "checkpoint"), (StepFlag.EVALUATION, "evaluation")]
)
def test_a_flagged_save_or_evaluation_the_others_wait_for(flag: StepFlag, word: str) -> None:
    local = local_ms(4, STEPS)
    steps = slice(19, None, 20)
    local[0, steps, phase("host")] += 400.0
    (found,) = findings_of(rank0_work, local, panel_options=flagged(local, steps, flag))
    assert word in found.title
    assert found.ranks == (0,)
    assert found.term is None  # left out of the identity
    assert found.ms == pytest.approx(20.0, rel=0.05)
    assert "2.4 s in 6" in text_of(found.evidence)


def test_a_checkpoint_that_all_ranks_write_makes_nobody_wait() -> None:
    local = local_ms(4, STEPS)
    steps = slice(19, None, 20)
    local[:, steps, phase("host")] += 400.0
    options = flagged(local, steps, StepFlag.CHECKPOINT)
    assert findings_of(rank0_work, local, panel_options=options) == ()


def test_a_flag_alone_is_no_finding() -> None:
    local = local_ms(4, STEPS)
    options = flagged(local, slice(19, None, 20), StepFlag.CHECKPOINT)
    assert findings_of(rank0_work, local, panel_options=options) == ()


# -- jitter -------------------------------------------------------------------------------


def rotating(ms: float, name: str = "forward") -> np.ndarray:
    local = local_ms(4, STEPS)
    late = np.random.default_rng(5).integers(0, 4, STEPS)
    local[late, np.arange(STEPS), phase(name)] += ms
    return local


def test_a_rotating_late_rank() -> None:
    (found,) = findings_of(jitter, rotating(25.0))
    assert (found.code, found.severity, found.term) == ("jitter", "critical", "jitter")
    assert found.phase == "forward"
    assert found.ranks == ()
    # The typical rank bears a quarter of it.
    assert found.ms == pytest.approx(0.75 * 25.0, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_spread_is_no_jitter(seed: int) -> None:
    assert findings_of(jitter, local_ms(4, STEPS, seed, noise=0.03)) == ()


def test_a_disturbance_of_all_ranks_at_once_is_no_jitter() -> None:
    local = local_ms(4, STEPS)
    local[:, ::7, phase("forward")] += 25.0
    assert findings_of(jitter, local) == ()


# -- data-bound ---------------------------------------------------------------------------


def starved(ms: float) -> np.ndarray:
    local = local_ms(4, STEPS)
    local[:, :, phase("data")] += ms
    return local


def test_all_ranks_waiting_for_data() -> None:
    (found,) = findings_of(data_bound, starved(15.0))
    assert (found.code, found.severity, found.term) == ("data-bound", "critical", "data")
    assert found.ranks == (0, 1, 2, 3)
    assert found.ms == pytest.approx(15.0, abs=0.3)
    assert found.would_save_ms == pytest.approx(15.0, abs=0.3)


def test_nothing_systemic_is_said_without_a_baseline() -> None:
    assert findings_of(data_bound, starved(15.0), baseline=False) == ()


def test_one_rank_waiting_for_data_is_not_data_bound() -> None:
    local = local_ms(4, STEPS)
    local[1, :, phase("data")] += 15.0
    assert findings_of(data_bound, local) == ()


# -- comm-bound ---------------------------------------------------------------------------

LARGE = Traffic(bytes=200e6, collectives=8, site=Location("train.py", 41), site_ms=3.0)
TINY = Traffic(bytes=40e3, collectives=1)


@pytest.mark.parametrize("baseline", [True, False])
def test_exposed_communication(baseline: bool) -> None:
    (found,) = findings_of(
        comm_bound, local_ms(4, STEPS), 14.0, baseline=baseline, case_options={"traffic": LARGE}
    )
    assert (found.code, found.severity, found.term) == ("comm-bound", "critical", "transfer")
    assert found.ms == pytest.approx(14.0, abs=0.3)
    assert found.would_save_ms == pytest.approx(14.0, abs=0.3)
    assert found.location == Location("train.py", 41)
    assert "191 MiB a step, in 8 blocking waits" in text_of(found.evidence)


def test_little_communication_is_fine() -> None:
    assert findings_of(comm_bound, local_ms(4, STEPS), 0.3) == ()


def test_waiting_for_a_slow_rank_is_not_communication() -> None:
    local = local_ms(4, STEPS)
    local[2, :, phase("backward")] += 30.0
    assert findings_of(comm_bound, local) == ()


def test_a_rehearsal_that_waits_for_cores_is_only_info() -> None:
    options = {"traffic": TINY, "rehearsal": True, "cores": 2, "ranks_per_node": 4}
    (found,) = findings_of(comm_bound, local_ms(4, STEPS), 14.0, case_options=options)
    assert (found.severity, found.title) == ("info", "Ranks wait for the cores they share")
    assert "2 cores that 4 ranks share" in text_of(found.evidence)


@pytest.mark.parametrize(
    "options", [{"traffic": TINY}, {"traffic": LARGE, "rehearsal": True}, {"rehearsal": True}]
)
def test_otherwise_communication_keeps_its_severity(options: dict[str, object]) -> None:
    (found,) = findings_of(comm_bound, local_ms(4, STEPS), 14.0, case_options=options)
    assert found.severity == "critical"


def test_where_cores_are_as_short_a_rehearsal_cannot_tell_a_network() -> None:
    options = {"traffic": LARGE, "rehearsal": True, "cores": 2, "ranks_per_node": 4}
    waiting = {**options, "core_wait": CoreWait(20.0, 1.0)}
    (found,) = findings_of(comm_bound, local_ms(4, STEPS), 14.0, case_options=waiting)
    assert (found.severity, found.title) == ("info", "Ranks wait for the cores they share")
    assert "stand ready without a core for 20.0 ms" in text_of(found.evidence)
    for wait, rehearsal in ((CoreWait(14.0, 1.0), True), (CoreWait(20.0, 1.0), False)):
        less = {**options, "core_wait": wait, "rehearsal": rehearsal}
        (found,) = findings_of(comm_bound, local_ms(4, STEPS), 14.0, case_options=less)
        assert found.severity == "critical"


# -- cpu-oversubscribed -------------------------------------------------------------------


def hindered(ms: float, name: str = "backward") -> np.ndarray:
    """All ranks alike are slower by `ms`."""
    local = local_ms(4, STEPS)
    local[:, :, phase(name)] += ms
    return local


SHORT = {"cores": 8, "ranks_per_node": 4, "threads": 4, "core_wait": CoreWait(13.0, 1.0)}


def test_a_wait_for_cores_that_makes_all_ranks_slower() -> None:
    (found,) = findings_of(cpu_oversubscribed, hindered(20.0), case_options=SHORT)
    assert (found.code, found.severity, found.term) == ("cpu-oversubscribed", "warning", "compute")
    assert found.title == "4 ranks with 4 threads each share 8 cores"
    assert found.ms == pytest.approx(12.0)  # what was waited, not what was lost
    assert found.would_save_ms == pytest.approx(12.0)
    assert "--threads 2" in found.hint
    assert "13.0 ms of each" in text_of(found.evidence)


def test_no_more_is_blamed_on_the_wait_than_was_lost() -> None:
    waiting = {**SHORT, "core_wait": CoreWait(30.0, 0.0)}
    (found,) = findings_of(cpu_oversubscribed, hindered(10.0), case_options=waiting)
    assert found.ms == pytest.approx(10.0, abs=0.3)


@pytest.mark.parametrize(
    ("options", "title", "hint"),
    [
        ({"threads": 1, "cores": 2}, "4 ranks share 2 cores", "fewer ranks than cores"),
        ({"threads": 2, "cores": 2}, "4 ranks with 2 threads each share 2 cores", "fewer ranks"),
        ({"threads": 1}, "Ranks wait for cores that something else uses", "loader workers"),
        ({"cores": None}, "Ranks wait for cores that something else uses", "loader workers"),
    ],
)
def test_whose_threads_are_too_many(options: dict[str, object], title: str, hint: str) -> None:
    (found,) = findings_of(cpu_oversubscribed, hindered(20.0), case_options={**SHORT, **options})
    assert found.title == title
    assert hint in found.hint


@pytest.mark.parametrize(
    ("options", "level"),
    [({"threads": 4}, "warning"), ({"threads": 1}, "info"), ({"threads": 1, "cores": 2}, "info")],
)
def test_a_rehearsal_says_nothing_against_the_training(
    options: dict[str, object], level: str
) -> None:
    options = {**SHORT, **options, "rehearsal": True}
    (found,) = findings_of(cpu_oversubscribed, hindered(20.0), case_options=options)
    assert found.severity == level


@pytest.mark.parametrize(
    ("local", "options"),
    [
        (local_ms(4, STEPS), SHORT),  # they wait, but lose nothing: a sleeping device
        (hindered(20.0), {**SHORT, "core_wait": None}),  # too many threads, not measured
        (hindered(20.0), {**SHORT, "core_wait": CoreWait(5.0, 4.9)}),  # the baseline waits as long
        (hindered(20.0, "data"), SHORT),  # lost by waiting for loaders, not for cores
    ],
    ids=["no loss", "no measure", "as in the baseline", "loaders"],
)
def test_a_near_miss_of_waiting_for_cores(local: np.ndarray, options: dict[str, object]) -> None:
    assert findings_of(cpu_oversubscribed, local, case_options=options) == ()


def test_one_slow_rank_is_not_blamed_on_the_cores() -> None:
    local = local_ms(4, STEPS)
    local[2, :, phase("backward")] += 18.0
    assert findings_of(cpu_oversubscribed, local, case_options=SHORT) == ()


def test_a_wait_for_cores_is_not_found_on_an_estimate() -> None:
    found = findings_of(cpu_oversubscribed, hindered(20.0), baseline=False, case_options=SHORT)
    assert found == ()


# -- small-batch --------------------------------------------------------------------------


def split_batch(update_ms: float, base_ms: float = 12.0, part: float = 0.25) -> Planted:
    """Strong scaling: a quarter of the samples, compute and host work; an update of its own length."""
    base, local = local_ms(1, 80, seed=99), part * local_ms(4, STEPS)
    base[:, :, phase("optimizer")] *= base_ms / 0.6
    local[:, :, phase("optimizer")] *= update_ms / (part * 0.6)
    return Planted(
        local, panel_options={"samples": 32 * part}, base=base, base_options={"samples": 32}
    )


def test_an_update_that_the_batch_does_not_shorten() -> None:
    (found,) = small_batch(split_batch(12.0).case())
    assert (found.code, found.severity, found.term) == ("small-batch", "critical", "optimizer")
    assert found.ms == pytest.approx(9.0, abs=0.2)
    assert found.would_save_ms == pytest.approx(9.0, abs=0.3)
    assert "25% of the baseline's, its optimizer step takes 12.0 ms" in text_of(found.evidence)


def test_what_the_update_takes_beyond_the_baselines_has_another_cause() -> None:
    (found,) = small_batch(split_batch(20.0).case())
    assert found.ms == pytest.approx(9.0, abs=0.2)


@pytest.mark.parametrize(
    "planted",
    [
        split_batch(3.0),  # sharded: every rank updates a quarter
        split_batch(0.15, base_ms=0.15),  # below 1% of the step
        split_batch(20.0, part=1.0),  # the same batch per rank
    ],
    ids=["sharded", "tiny", "weak scaling"],
)
def test_a_near_miss_of_a_small_batch(planted: Planted) -> None:
    assert small_batch(planted.case()) == ()


def test_the_wait_for_cores_does_not_claim_the_small_batchs_part() -> None:
    case = replace(split_batch(20.0).case(), core_wait=CoreWait(30.0, 0.0), cores=2, threads=1)
    (batch,), (cores,) = small_batch(case), cpu_oversubscribed(case)
    assert case.accounting is not None
    lost = case.accounting.term("optimizer").ms
    assert lost is not None
    assert (batch.ms or 0) + (cores.ms or 0) == pytest.approx(lost, abs=0.3)


# -- short-run, unsupported-topology ------------------------------------------------------


def test_few_steady_steps() -> None:
    (found,) = findings_of(short_run, local_ms(4, 12))
    assert (found.code, found.severity) == ("short-run", "info")
    assert "12 steps recorded, 11 of them used; left out: 1 warm-up" in found.evidence


def test_steps_without_a_synchronization_are_not_a_matter_of_more_steps() -> None:
    flags = np.full((4, 1), int(StepFlag.UNSYNCED))
    (found,) = short_run(Planted(local_ms(4, 50), panel_options={"flags": flags}).case())
    assert found.title == "No steady step was recorded"
    assert "DistributedDataParallel" in found.hint
    assert "60 steps" not in found.hint


def test_enough_steps_are_not_short() -> None:
    assert findings_of(short_run, local_ms(4, 40)) == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_groups": (2,)}, "groups of 2 of 4 ranks"),
        ({"gradient_groups": (2, 4)}, "groups of 2 and 4 of 4 ranks"),
        ({"local_sgd": True}, "local SGD"),
    ],
)
def test_a_topology_that_the_identity_does_not_hold_for(
    options: dict[str, object], words: str
) -> None:
    (found,) = findings_of(unsupported_topology, local_ms(4, 40), case_options=options)
    assert found.code == "unsupported-topology"
    assert words in text_of(found.evidence)


@pytest.mark.parametrize("groups", [(), (4,), (1, 4)])
def test_reducing_over_all_ranks_is_supported(groups: tuple[int, ...]) -> None:
    options = {"gradient_groups": groups}
    assert findings_of(unsupported_topology, local_ms(4, 40), case_options=options) == ()


# -- all of them --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_clean_run_has_no_finding(ranks: int, seed: int) -> None:
    assert find(Planted(local_ms(ranks, STEPS, seed, noise=0.02)).case()) == ()


def test_the_worst_comes_first_and_the_ignored_not_at_all() -> None:
    local = starved(6.0)
    local[2, :, phase("backward")] += 30.0
    case = Planted(local, 3.0).case()
    assert [f.code for f in find(case)] == ["slow-rank", "data-bound", "comm-bound"]
    assert [f.severity for f in find(case)] == ["critical", "warning", "info"]
    assert [f.code for f in find(case, ["slow-rank"])] == ["data-bound", "comm-bound"]


@pytest.mark.parametrize(
    ("share", "level"),
    [(0.0099, None), (0.01, "info"), (0.05, "warning"), (0.15, "critical"), (-1.0, None)],
)
def test_severity_by_share(share: float, level: str | None) -> None:
    assert severity(share) == level


def test_no_detector_needs_an_accounting() -> None:
    case = replace(Planted(local_ms(4, 12)).case(), accounting=None)
    assert [f.code for f in find(case)] == ["short-run"]


def test_every_speed_code_has_its_page() -> None:
    root = Path(__file__).parents[2]
    headings = ("What it means", "How it is seen", "Known limits", "Remedy", "How to silence it")
    for code in CATALOGUE.values():
        if code.kind != "speed":
            continue
        page = (root / code.docs).read_text("utf-8")
        assert page.startswith(f"# {code.code}\n")
        assert [h for h in headings if f"## {h}" not in page] == []
        assert f"--ignore {code.code}" in page


def test_detectors_and_codes_match() -> None:
    speed = {code.code for code in CATALOGUE.values() if code.kind == "speed"}
    named = {detector.__name__.replace("_", "-") for detector in DETECTORS}
    assert named == speed


def test_a_case_knows_where_a_rank_is() -> None:
    case = Planted(local_ms(3, 40)).case()
    shifted = replace(case, panel=replace(case.panel, ranks=(4, 7, 9)))
    assert isinstance(shifted, Case)
    assert shifted.position(7) == 1
