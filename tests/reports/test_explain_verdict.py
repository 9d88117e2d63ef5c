"""The verdict's sentences, literally."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diag.reports.accounting import Accounting
from diag.reports.findings.case import finding
from diag.reports.model import Estimate, Finding, Term, TermName
from diag.reports.verdict import Situation, verdict
from helpers.cases import Planted, local_ms

AT = Situation(world_size=4, rehearsal=False, num_steps=120, steps_used=119)
SLOW = finding(
    "slow-rank", "critical", "Rank 2 is slow in backward", [], "",
    ms=18.2, term="straggler", ranks=(2,), phase="backward", would_save_ms=17.3,
)  # fmt: skip


def accounting(**changes: object) -> Accounting:
    """60 ms ideal, 87 ms measured, on 4 ranks against 1."""
    base = Planted(local_ms(4, 40)).case().accounting
    assert base is not None
    numbers = {
        "step_ms": 87.0,
        "ideal_ms": 60.0,
        "speedup": Estimate(4 * 60 / 87),
        "efficiency": Estimate(60 / 87),
        "terms": with_terms(base.terms, {"straggler": 18.2, "compute": 6.1, "transfer": 2.7}),
    }
    return replace(base, **{**numbers, **changes})


def with_terms(terms: tuple[Term, ...], ms: dict[TermName, float]) -> tuple[Term, ...]:
    return tuple(replace(t, ms=ms.get(t.term, 0.0), share=0.0) for t in terms)


def test_a_cause_with_its_cost_and_what_a_cure_gives() -> None:
    assert verdict(accounting(), [SLOW], AT) == (
        "2.8x on 4 ranks (69% efficient): rank 2 is slow in backward and costs 18.2 ms of every "
        "87.0 ms step; without it 3.4x."
    )


def test_several_slow_ranks() -> None:
    slow = replace(SLOW, title="Ranks 1 and 2 are slow in backward", ranks=(1, 2))
    assert verdict(accounting(), [slow], AT) == (
        "2.8x on 4 ranks (69% efficient): ranks 1 and 2 are slow in backward and cost 18.2 ms of "
        "every 87.0 ms step; without them 3.4x."
    )


def test_an_estimate_is_a_bound_everywhere() -> None:
    assert verdict(accounting(kind="estimated"), [SLOW], AT) == (
        "No baseline: at most 2.8x on 4 ranks (at most 69% efficient): rank 2 is slow in backward "
        "and costs 18.2 ms of every 87.0 ms step; without it at most 3.4x."
    )
    assert verdict(accounting(kind="estimated"), [], AT) == (
        "No baseline: at most 2.8x on 4 ranks (at most 69% efficient): no rank holds the others "
        "up; what all ranks lose alike is unknown without a baseline."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"speedup": Estimate(3.88), "efficiency": Estimate(0.97)},
            "Nothing wrong: 3.9x on 4 ranks (97% efficient).",
        ),
        (
            {"speedup": Estimate(4.6), "efficiency": Estimate(1.15, 1.1, 1.2)},
            "Nothing wrong: 4.6x on 4 ranks (115% efficient). Better than linear: make sure that "
            "nothing disturbed the baseline.",
        ),
        (
            {"speedup": Estimate(4.6), "efficiency": Estimate(1.15, 0.9, 1.3)},
            "Nothing stands out: 4.6x on 4 ranks (115% efficient). The steps vary: it may be "
            "between 90% and 130%; measure longer or on a quieter machine.",
        ),
        (
            {"speedup": Estimate(1.9), "efficiency": Estimate(0.95), "baseline_world_size": 2},
            "Nothing wrong: 1.90x from 2 to 4 ranks (95% efficient).",
        ),
    ],
)
def test_nothing_wrong_is_a_result(changes: dict[str, object], text: str) -> None:
    assert verdict(accounting(**changes), [], AT) == text


def test_info_alone_is_not_something_wrong() -> None:
    well = {"speedup": Estimate(3.88), "efficiency": Estimate(0.97)}
    info = replace(SLOW, severity="info", ms=1.0)
    assert verdict(accounting(**well), [info], AT).startswith("Nothing wrong: ")


def test_a_loss_without_a_finding_is_named_by_its_term() -> None:
    base = accounting()
    jitter = replace(base, terms=with_terms(base.terms, {"jitter": 20.0, "transfer": 7.0}))
    assert verdict(jitter, [], AT) == (
        "2.8x on 4 ranks (69% efficient): late ranks, in turn, cost 20.0 ms of every 87.0 ms step."
    )
    many = replace(base, terms=with_terms(base.terms, {"compute": 4.0, "transfer": 4.0}))
    assert "many small losses, none of them 5% of the step" in verdict(many, [], AT)


COMPUTE = "each rank computes 20.0 ms longer than the baseline does for the same work"


@pytest.mark.parametrize(
    ("term", "changes", "rehearsal", "text"),
    [
        (
            "compute", {}, False,
            f"{COMPUTE}, 23% of the step; compare the GPUs' clocks, power and temperature with "
            "the baseline's.",
        ),
        (
            "compute", {"compute_ms": {"forward": 1.0, "backward": 19.0}}, False,
            f"{COMPUTE}, 23% of the step; mostly in backward, beside the communication: compare "
            "GPU clocks, try other buckets.",
        ),
        (
            "compute", {}, True,
            f"{COMPUTE}, 23% of the step; ranks on one machine share its memory and caches: try "
            "fewer of them.",
        ),
        (
            "compute", {"q": 0.25}, False,
            f"{COMPUTE}, 23% of the step; its batches are smaller here: try as many samples per "
            "rank as the baseline had.",
        ),
        (
            "optimizer", {}, False,
            "the optimizer step takes 20.0 ms longer than at the baseline's pace, 23% of the "
            "step; see whether it is fused (fused=True) and whether it waits for the host.",
        ),
        (
            "host", {}, False,
            "each rank's own code on the host takes 20.0 ms longer than at the baseline's pace, "
            "23% of the step; look for .item(), printing, logging and metrics inside the loop.",
        ),
        (
            "copy", {}, False,
            "copies to the device take 20.0 ms longer than at the baseline's pace, 23% of the "
            "step; use pin_memory=True and non_blocking=True; ranks share the host's memory and "
            "PCIe.",
        ),
    ],
)  # fmt: skip
def test_a_loss_of_all_ranks_alike_says_where_to_look(
    term: TermName, changes: dict[str, object], rehearsal: bool, text: str
) -> None:
    base = accounting(**{"compute_ms": {"forward": 8.0, "backward": 12.0}, **changes})
    lost = replace(base, terms=with_terms(base.terms, {term: 20.0, "transfer": 7.0}))
    said = verdict(lost, [], replace(AT, rehearsal=rehearsal))
    assert said.partition(": ")[2].removesuffix(NO_GPU) == text


NO_GPU = " A rehearsal on CPU: these are not a GPU's numbers."


def sure(terms: tuple[Term, ...], name: TermName, low: float) -> tuple[Term, ...]:
    return tuple(replace(t, low=low) if t.term == name else t for t in terms)


def test_a_larger_loss_without_a_name_goes_before_the_worst_cause_with_one() -> None:
    base = accounting()
    terms = with_terms(base.terms, {"compute": 24.0, "straggler": 18.2})
    clear = replace(base, terms=sure(terms, "compute", 20.0))
    said = verdict(clear, [SLOW], AT)
    assert said.startswith("2.8x on 4 ranks (69% efficient): each rank computes 24.0 ms longer")
    assert said.endswith(
        ". Next: rank 2 is slow in backward and costs 18.2 ms of every 87.0 ms step; without it "
        "3.4x."
    )
    unsure = replace(base, terms=sure(terms, "compute", 12.0))
    assert verdict(unsure, [SLOW], AT).startswith("2.8x on 4 ranks (69% efficient): rank 2 is slow")
    named = replace(SLOW, code="small-batch", title="Why", term="compute", ms=14.0, ranks=())
    assert verdict(clear, [SLOW, named], AT).startswith(
        "2.8x on 4 ranks (69% efficient): rank 2 is slow"
    )


def test_a_finding_of_a_small_part_does_not_stand_for_the_term() -> None:
    base = accounting()
    compute = replace(base, terms=with_terms(base.terms, {"compute": 20.0}))
    part = finding(
        "cpu-oversubscribed", "info", "Ranks wait for cores", [], "", ms=4.0, term="compute"
    )
    assert "each rank computes 20.0 ms longer" in verdict(compute, [part], AT)
    most = replace(part, ms=11.0, would_save_ms=11.0)
    assert verdict(compute, [most], AT) == (
        "2.8x on 4 ranks (69% efficient): ranks wait for cores, 11.0 ms of every 87.0 ms step; "
        "without it 3.2x."
    )


def test_a_rehearsal_whose_ranks_wait_for_cores_longest_says_so_first() -> None:
    cores = finding(
        "cpu-oversubscribed", "info", "4 ranks share 2 cores", [], "", ms=30.0, term="compute"
    )
    said = verdict(accounting(), [SLOW, cores], AT)
    assert said == (
        "2.8x on 4 ranks (69% efficient): 4 ranks share 2 cores, 30.0 ms of every 87.0 ms step. "
        "Next: rank 2 is slow in backward and costs 18.2 ms of every 87.0 ms step; without it 3.4x."
    )
    assert "share 2 cores" not in verdict(accounting(), [SLOW, replace(cores, ms=15.0)], AT)


def test_a_loss_that_an_info_finding_explains_goes_by_its_title() -> None:
    base = accounting()
    waits = replace(base, terms=with_terms(base.terms, {"transfer": 25.0}))
    cores = finding(
        "comm-bound", "info", "Ranks wait for the cores they share", [], "",
        ms=26.0, term="transfer",
    )  # fmt: skip
    assert verdict(waits, [cores], AT) == (
        "2.8x on 4 ranks (69% efficient): ranks wait for the cores they share, 26.0 ms of every "
        "87.0 ms step."
    )


def test_what_is_outside_the_step_is_said_to_be() -> None:
    saving: Finding = replace(
        SLOW, code="rank0-work", term=None, ms=31.9,
        title="The others wait while rank 0 is busy with a checkpoint",
    )  # fmt: skip
    assert verdict(accounting(), [saving], AT) == (
        "2.8x on 4 ranks (69% efficient) in steady steps; besides, the others wait while rank 0 "
        "is busy with a checkpoint, 31.9 ms a step over the whole run."
    )


def test_doubts_are_said_aloud() -> None:
    base = accounting()
    off = replace(base, terms=with_terms(base.terms, {"residual": 2.6, "straggler": 18.2}))
    assert verdict(off, [SLOW], AT).endswith("Caution: 3% of the step is not accounted for.")
    brief = replace(AT, steps_used=12)
    assert verdict(base, [], brief) == (
        "2.8x on 4 ranks (69% efficient), from 12 steady steps: too few to judge by."
    )


NONE = replace(AT, num_steps=0, steps_used=0)


def test_a_rehearsal_is_called_one() -> None:
    text = verdict(accounting(), [SLOW], replace(AT, rehearsal=True))
    assert text.startswith("2.8x on 4 CPU ranks")
    assert text.endswith("A rehearsal on CPU: these are not a GPU's numbers.")


@pytest.mark.parametrize(
    ("at", "start"),
    [
        (NONE, "No step was recorded: it takes two optimizer steps on every rank, and the script"),
        (
            replace(NONE, ending="the run failed with exit code 1"),
            "No step was recorded: the run failed with exit code 1.",
        ),
        (replace(NONE, num_steps=3), "Too short to judge: 3 steps recorded, none of them steady"),
        (
            replace(NONE, num_steps=3, ending="the run was interrupted"),
            "Too short to judge: 3 steps recorded, none of them steady; let it run for 60 steps or "
            "more. Besides, the run was interrupted.",
        ),
        (
            replace(NONE, num_steps=50, excluded={"warm-up": 1, "unsynced": 49}),
            "Nothing to compare: 50 steps recorded, but they ended without a gradient sync",
        ),
        (
            replace(NONE, num_steps=9, excluded={"warm-up": 1, "profiled": 8}),
            "No steady step: 9 steps recorded, but every one was left out (profiled).",
        ),
        (replace(AT, unsupported=True), "Gradients are not reduced over all ranks in each step"),
        (replace(AT, unsupported=True, speedup=3.5), "3.5x on 4 ranks. Gradients are not reduced"),
    ],
)
def test_without_numbers(at: Situation, start: str) -> None:
    assert verdict(None, [], at).startswith(start)
