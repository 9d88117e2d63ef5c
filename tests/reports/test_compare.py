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
    baseline_command,
    check_baseline,
    comparable_facts,
    differences,
    find_baselines,
    newest_multi_rank,
)
from helpers.records import released_together, write_run

CREATED = "2026-01-{:02d}T00:00:00+00:00"


def record(runs_dir: Path, name: str, ranks: int, day: int = 1, **facts: Any) -> RunDir:
    """A run of 4 steps whose facts are as given; `precision` goes to rank.json."""
    rank_facts = {key: facts.pop(key) for key in ("precision",) if key in facts}
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
    assert newest_multi_rank(tmp_path).name == "new"


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


FIELDS = {
    "script": ({"script_sha256": "1" * 64}, "script (000000000000 against 111111111111)"),
    "arguments": ({"script_args": ["--lr", "1 0"]}, "script arguments (none against --lr '1 0')"),
    "device": ({"device": "cuda"}, "device (cpu against cuda)"),
    "device name": ({"device_name": "H200"}, "device name (cpu against H200)"),
    "threads": ({"threads": 4}, "threads per rank (1 against 4)"),
    "torch": ({"versions": {"torch": "2.6.0"}}, "torch version (2.13.0 against 2.6.0)"),
    "precision": ({"precision": "bfloat16"}, "precision (float32 against bfloat16)"),
    "module": ({"module": "b"}, "module (a against b)"),
}


@pytest.mark.parametrize(("facts", "words"), FIELDS.values(), ids=FIELDS.keys())
def test_a_differing_field_is_refused_by_name_with_both_values(
    tmp_path: Path, facts: dict[str, Any], words: str
) -> None:
    run = record(tmp_path, "run", 2, module="a")
    base = record(tmp_path, "base", 1, **{"module": "a", **facts})
    with pytest.raises(DiagError) as error:
        check_baseline(run, base, force=False)
    assert error.value.slug == "not-comparable"
    assert error.value.what == f"run and base differ in {words}"
    assert "--force" in error.value.hint
    (warning,) = check_baseline(run, base, force=True)
    assert words in warning


def test_an_incomparable_baseline_is_not_chosen_but_named(tmp_path: Path) -> None:
    record(tmp_path, "far", 1, threads=4, device_name="other")
    record(tmp_path, "near", 1, threads=4)
    run = record(tmp_path, "run", 2, day=2)
    assert find_baselines(tmp_path, run) == (
        (),
        ("near is no baseline: it differs in threads per rank (1 against 4)",),
    )
    forced, (warning,) = find_baselines(tmp_path, run, force=True)
    assert names(forced) == ["near"]
    assert "by force" in warning


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
