"""Which runs are compared, and how a refusal reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diag.errors import DiagError
from diag.record.store import RunDir
from diag.reports.compare import (
    Chosen,
    baseline_command,
    check_baseline,
    comparable_facts,
    find_baselines,
    newest_multi_rank,
)
from diag.reports.differences import differences
from diag.reports.glance import has_steps
from helpers.records import released_together, write_run

CREATED = "2026-01-{:02d}T00:00:00+00:00"


def record(runs_dir: Path, name: str, ranks: int, day: int = 1, **facts: Any) -> RunDir:
    """A run of 4 steps whose facts are as given; those in `rank` go to rank.json."""
    rank_facts = facts.pop("rank", {})
    phases = released_together(np.full((ranks, 4, 7), 1_000_000))
    path = write_run(
        runs_dir,
        phases,
        name=name,
        run_facts={"created": CREATED.format(day), **facts},
        rank_facts=rank_facts,
    )
    return RunDir(path)


def names(runs: tuple[RunDir, ...]) -> list[str]:
    return [run.name for run in runs]


def test_the_newest_run_of_several_ranks_is_taken(tmp_path: Path) -> None:
    record(tmp_path, "old", 2, day=1)
    record(tmp_path, "new", 4, day=2)
    record(tmp_path, "single", 1, day=3)
    assert newest_multi_rank(tmp_path) == Chosen(RunDir(tmp_path / "new"))


BAD_ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "failed": ({"exit_code": 1}, "failed (exit 1)"),
    "interrupted": ({"ended_by": "signal", "exit_code": 130}, "was interrupted"),
    "out of memory": ({"ended_by": "signal", "exit_code": 137}, "failed (SIGKILL)"),
    "killed": ({"ended_by": None}, "was killed"),
    "not distributed": ({"ended_by": "diag", "exit_code": 2}, "was ended by diag"),
    "no step": ({"rank": {"steps": 0}}, "recorded no step"),
}


@pytest.mark.parametrize(("facts", "how"), BAD_ENDS.values(), ids=BAD_ENDS.keys())
def test_a_newer_run_that_explains_nothing_is_passed_over_and_named(
    tmp_path: Path, facts: dict[str, Any], how: str
) -> None:
    record(tmp_path, "well", 2, day=1, ended_by="max-steps")
    bad = record(tmp_path, "bad", 2, day=2, **facts)
    assert newest_multi_rank(tmp_path) == Chosen(
        RunDir(tmp_path / "well"), bad, f"newer run bad {how}"
    )


def test_of_several_newer_runs_the_newest_is_named(tmp_path: Path) -> None:
    record(tmp_path, "well", 2, day=1)
    record(tmp_path, "bad", 2, day=2, exit_code=1)
    record(tmp_path, "worse", 2, day=3, exit_code=2)
    assert newest_multi_rank(tmp_path).note == (
        "2 newer runs were passed over: the newest, worse, failed (exit 2)"
    )


def test_where_none_ended_well_the_newest_with_steps_is_taken(tmp_path: Path) -> None:
    bad = record(tmp_path, "bad", 2, day=2, exit_code=1)
    assert newest_multi_rank(tmp_path) == Chosen(bad)
    empty = record(tmp_path, "empty", 2, day=3, exit_code=1, rank={"steps": 0})
    chosen = newest_multi_rank(tmp_path)
    assert (chosen.run, chosen.newer) == (bad, empty)


def test_steps_that_no_rank_states_are_taken_to_be_there(tmp_path: Path) -> None:
    run = record(tmp_path, "torn", 2)
    for path in run.ranks.glob("*/rank.json"):
        path.write_text("{")
    assert has_steps(run)
    without = RunDir(tmp_path / "without")
    without.ranks.mkdir(parents=True)
    assert not has_steps(without)


def test_an_empty_store_says_how_to_record(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="holds no run") as error:
        newest_multi_rank(tmp_path / "nowhere")
    assert error.value.slug == "no-runs"
    assert "diag run" in error.value.hint


def test_a_store_of_single_ranks_is_told_apart(tmp_path: Path) -> None:
    record(tmp_path, "single", 1)
    with pytest.raises(DiagError, match="none of the 1 run") as error:
        newest_multi_rank(tmp_path)
    assert error.value.slug == "no-multi-rank-run"


def test_the_newest_comparable_baseline_leads(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        record(tmp_path, f"base{day}", 1, day=day)
    record(tmp_path, "two", 2, day=1)
    run = record(tmp_path, "run", 4, day=4)
    found, notes = find_baselines(tmp_path, run)
    assert names(found) == ["base3", "base2", "base1"]
    assert notes == ()


LR = {"script_args": ["--lr", "0.1", "--epochs=3", "data.txt"]}
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "script": (
        {"script_sha256": "1" * 64, "script": "/home/me/eval.py"},
        "another script: train.py against eval.py",
    ),
    "same name": (
        {"script_sha256": "1" * 64, "script": "old/train.py"},
        "another script: train.py against old/train.py",
    ),
    "edited": ({"script_sha256": "1" * 64}, "train.py was edited in between"),
    "value": (
        {"script_args": ["--lr", "0.2", "--epochs=3", "data.txt"]},
        "other arguments: --lr 0.1 against 0.2",
    ),
    "option": (
        {"script_args": [*LR["script_args"], "--big"]},
        "other arguments: none against --big",
    ),
    "several": (
        {"script_args": ["--epochs=5", "more data.txt"]},
        "other arguments: --lr 0.1 against none, --epochs 3 against 5, "
        "data.txt against 'more data.txt'",
    ),
    "order": (
        {"script_args": ["data.txt", "--epochs=3", "--lr", "0.1"]},
        "other arguments: in another order",
    ),
    "device": ({"device": "cuda"}, "device cpu against cuda"),
    "device name": ({"device_name": "H200"}, "another device: cpu against H200"),
    "threads": ({"threads": 4}, "1 thread against 4"),
    "torch": ({"versions": {"torch": "2.6.0"}}, "torch 2.13.0 against 2.6.0"),
    "precision": ({"rank": {"precision": "bfloat16"}}, "precision float32 against bfloat16"),
    "module": ({"module": "b"}, "another module: a against b"),
}


@pytest.mark.parametrize(("facts", "words"), FIELDS.values(), ids=FIELDS.keys())
def test_what_differs_is_refused_in_words_with_both_values(
    tmp_path: Path, facts: dict[str, Any], words: str
) -> None:
    run = record(tmp_path, "run", 2, module="a", **LR)
    base = record(tmp_path, "base", 1, **{"module": "a", **LR, **facts})
    with pytest.raises(DiagError) as error:
        check_baseline(run, base, force=False)
    assert error.value.slug == "not-comparable"
    assert error.value.what == f"run and base are not comparable: {words}"
    assert "--force" in error.value.hint
    (warning,) = check_baseline(run, base, force=True)
    assert warning == f"run and base are compared by force: {words}"


def test_a_negative_number_is_a_value_and_no_option(tmp_path: Path) -> None:
    run = record(tmp_path, "run", 2, script_args=["--shift", "-1.5"])
    base = record(tmp_path, "base", 1, script_args=["--shift", "-2"])
    with pytest.raises(DiagError, match=r"arguments: --shift -1\.5 against -2\n"):
        check_baseline(run, base, force=False)


def test_an_incomparable_baseline_is_not_chosen_but_named(tmp_path: Path) -> None:
    record(tmp_path, "far", 1, threads=4, device_name="other")
    record(tmp_path, "near", 1, threads=4)
    run = record(tmp_path, "run", 2, day=2)
    assert find_baselines(tmp_path, run) == ((), ("near is no baseline: 1 thread against 4",))
    forced, (warning,) = find_baselines(tmp_path, run, force=True)
    assert names(forced) == ["near"]
    assert "by force" in warning


OTHER = {"script": "other.py", "script_sha256": "2" * 64}


def test_only_the_same_script_comes_near(tmp_path: Path) -> None:
    record(tmp_path, "other", 1, **OTHER)
    run = record(tmp_path, "run", 2, day=2, **LR)
    assert find_baselines(tmp_path, run) == (
        (),
        ("other is no baseline: another script; other arguments",),
    )
    edited = {"script_sha256": "3" * 64, "threads": 8, "device_name": "x"}
    record(tmp_path, "mine", 1, **edited)
    (note,) = find_baselines(tmp_path, run)[1]
    assert note == "mine is no baseline: train.py was edited in between and 3 more"


def test_the_note_on_a_near_miss_takes_one_line(tmp_path: Path) -> None:
    long = [word for i in range(20) for word in (f"--option-{i}", str(i))]
    record(tmp_path, "near", 1, script_args=long, threads=4, rank={"precision": "bfloat16"})
    run = record(tmp_path, "run", 2, day=2)
    (note,) = find_baselines(tmp_path, run)[1]
    assert note == "near is no baseline: other arguments and 2 more"
    assert len("  warning: " + note) <= 80


def test_an_unknown_precision_is_no_difference(tmp_path: Path) -> None:
    record(tmp_path, "base", 1)
    run = record(tmp_path, "run", 2, day=2, rank={"precision": "unknown"})
    assert names(find_baselines(tmp_path, run)[0]) == ["base"]


@pytest.mark.parametrize(
    "facts", [{"exit_code": 1}, {"ended_by": None}, {"ended_by": "signal", "exit_code": 130}]
)
def test_a_failed_or_unfinished_baseline_is_not_chosen(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    record(tmp_path, "failed", 1, **facts)
    assert find_baselines(tmp_path, record(tmp_path, "run", 2)) == ((), ())


def test_a_baseline_must_be_smaller(tmp_path: Path) -> None:
    run, other = record(tmp_path, "run", 2), record(tmp_path, "other", 2)
    with pytest.raises(DiagError, match="other has 2 ranks, run has 2") as error:
        check_baseline(run, other, force=True)
    assert error.value.slug == "baseline-not-smaller"


def test_what_is_unknown_differs_from_nothing(tmp_path: Path) -> None:
    run = record(tmp_path, "run", 2)
    bare = RunDir(tmp_path / "bare")
    bare.path.mkdir()
    assert differences(comparable_facts(run), comparable_facts(bare)) == ()


def test_the_command_runs_the_same_script_on_one_rank() -> None:
    facts = {
        "name": "demo",
        "script": "/home/me/my train.py",
        "script_args": ["--data", "/data/image net", "--epochs", "3"],
        "device": "cpu",
        "threads": 1,
    }
    command = baseline_command(facts, cwd=Path("/home/me"))
    assert command is not None
    assert shlex.split(command) == [
        "diag", "run", "--gpus", "1", "--device", "cpu", "--threads", "1", "--max-steps", "60",
        "--name", "demo-baseline", "my train.py", "--data", "/data/image net", "--epochs", "3",
    ]  # fmt: skip


def test_the_command_knows_modules_and_other_stores() -> None:
    facts = {"name": "x", "module": "pkg.train", "script": "/a/pkg/train.py", "device": "cuda"}
    assert baseline_command(facts, runs_dir=Path("/runs")) == (
        "diag run --gpus 1 --device cuda --max-steps 60 --name x-baseline --runs-dir /runs -m pkg.train"
    )
    assert baseline_command({}) is None
