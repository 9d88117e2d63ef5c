"""What `diag run` prints of its own, literally and in 80 columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diag.cli.run import closing_lines
from diag.cli.text import format_error, wrap
from diag.launch.failure import describe_failure, not_distributed, one_line, tail
from diag.launch.hardware import Hardware
from diag.launch.launcher import RunResult, baseline_options
from diag.launch.options import RunOptions
from diag.launch.outcome import Outcome, RankFailure
from diag.launch.plan import make_plan
from diag.record.store import RunDir

LOGS = Path("diag-runs/x/logs")
BOOM = {"type": "ValueError", "message": "boom\nmore", "file": "/a/t.py", "line": 7}


def result(ranks: int, path: str = "diag-runs/x", probes: bool = True) -> RunResult:
    plan = make_plan(RunOptions("t.py", gpus=ranks), Hardware(cores=8), {})
    return RunResult(RunDir(Path(path)), plan, "run", probes, "script", 0)


def failed(code: int, error: dict[str, object] | None = None, said: int = 1) -> RankFailure:
    outcome = Outcome(1, 0, "exception", said, 0, error, "Traceback …\n" if error else "")
    return RankFailure(1, code, 0, outcome)


def test_error_is_what_and_hint_in_80_columns() -> None:
    text = format_error("too-few-gpus", "word " * 30 + "end", "try " * 25)
    assert text.splitlines() == [
        "error[too-few-gpus]: " + "word " * 11 + "word",
        "  " + "word " * 14 + "word",
        "  word word word end",
        "hint: " + "try " * 17 + "try",
        "  " + "try " * 6 + "try",
    ]
    assert format_error("x", "y") == "error[x]: y"


def test_code_and_paths_are_never_broken() -> None:
    path = "/" + "long-directory/" * 8
    assert wrap(f"cannot read {path}") == ["cannot read", f"  {path}"]
    code = "    " + "x" * 100
    assert wrap(f"head\n{code}\ntail") == ["head", code, "  tail"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """diag-runs/x in the working directory, with one rank's record."""
    monkeypatch.delenv("DIAG_RUNS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diag-runs/x/ranks/00000-0").mkdir(parents=True)
    return Path("diag-runs")


def test_closing_lines(store: Path) -> None:
    assert closing_lines(result(2), store) == (
        "recorded 2 ranks in diag-runs/x",
        "next: diag scaling-report x",
    )
    assert closing_lines(result(1), store) == (
        "recorded 1 rank in diag-runs/x",
        "next: the same with --gpus N, then `diag scaling-report`",
    )
    elsewhere = closing_lines(result(2, str(store.resolve() / "x")), store.resolve())
    assert elsewhere[1] == f"next: diag scaling-report {store.resolve()}/x"


def test_closing_lines_without_a_record(store: Path) -> None:
    assert closing_lines(result(2, probes=False), store) == (
        "probes were off: only the ranks' output is kept, in diag-runs/x/logs",
    )
    (store / "x/ranks/00000-0").rmdir()
    assert closing_lines(result(2), store) == (
        "no rank imported torch, so only output is kept, in diag-runs/x/logs",
    )


@pytest.mark.parametrize(
    ("steps", "words"), [(150, "150 optimizer steps"), (1, "1 optimizer step")]
)
def test_an_end_by_max_steps_says_what_did_not_run(store: Path, steps: int, words: str) -> None:
    line = f"ended after {words} (--max-steps): nothing after the loop ran"
    assert len(f"diag: {line}") <= 80
    for ranks, probes in ((1, True), (2, True), (2, False)):
        ended = replace(result(ranks, probes=probes), stopped_after=steps)
        assert closing_lines(ended, store)[0] == line
        assert closing_lines(ended, store)[1:] == closing_lines(result(ranks, probes=probes), store)


def test_exception_of_a_rank() -> None:
    text = describe_failure(failed(1, BOOM | {"function": "main"}), 4, False, "", LOGS)
    assert text.what == "rank 1 of 4 failed: ValueError: boom (t.py:7 in main)"
    assert text.hint == "every rank's output is in diag-runs/x/logs"
    assert text.evidence == "Traceback …\n"


def test_module_level_and_nameless_places() -> None:
    assert one_line(BOOM | {"function": "<module>"}) == "ValueError: boom (t.py:7)"
    assert one_line({"type": "KeyError", "message": ""}) == "KeyError"


def test_exit_code_of_a_single_rank_shows_the_end_of_stderr() -> None:
    stderr = "\n".join(f"line {i}" for i in range(40)) + "\n"
    text = describe_failure(failed(3, said=3), 1, False, stderr, LOGS)
    assert text.what == "the script exited with code 3"
    assert text.evidence.splitlines() == [f"line {i}" for i in range(25, 40)]
    assert tail("") == ""


def test_death_by_signal() -> None:
    text = describe_failure(replace(failed(-9), outcome=None), 2, False, "last words", LOGS)
    assert text.what == "rank 1 of 2 was killed by SIGKILL"
    assert "dmesg" in text.hint
    assert text.evidence == "last words\n"
    late = describe_failure(failed(-6, said=0), 2, False, "", LOGS)
    assert late.what == "rank 1 of 2 was killed by SIGABRT, after its script had ended"


def test_a_rehearsed_script_that_insists_on_a_gpu_gets_the_remedy() -> None:
    error = BOOM | {"message": "Distributed package doesn't have NCCL built in", "function": "f"}
    assert "without a backend" in describe_failure(failed(1, error), 2, True, "", LOGS).hint
    assert "without a backend" not in describe_failure(failed(1, error), 2, False, "", LOGS).hint


def test_the_three_lines() -> None:
    error = not_distributed("train.py", 4, BOOM)
    assert error.exit_code == 2
    text = format_error(error.slug, error.what, error.hint)
    assert text.splitlines()[:2] == [
        "error[not-distributed]: train.py was stopped before its first optimizer step",
        "  (t.py:7): 4 ranks run it, but it distributes nothing, so they would train 4",
    ]
    for line in ("init_process_group()", "DistributedDataParallel(model)", "DistributedSampler("):
        assert line in text
    assert max(map(len, text.splitlines())) <= 80


def test_baseline_is_the_same_on_one_rank() -> None:
    options = RunOptions(
        "t.py",
        ("--lr", "1"),
        gpus=4,
        name="n",
        baseline_steps=40,
        max_steps=200,
        nnodes=2,
        node_rank=0,
        rdzv_endpoint="h:1",
        threads=2,
    )
    assert baseline_options(options) == RunOptions(
        "t.py",
        ("--lr", "1"),
        gpus=1,
        name="n-baseline",
        baseline_steps=40,
        max_steps=40,
        threads=2,
    )
    assert baseline_options(replace(options, name=None)).name is None
