"""`diag run`'s own words, told apart from the script's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diag.cli import arguments, main
from diag.cli import run as run_module
from diag.cli.arguments import give_default
from diag.launch.options import RunOptions

FLAGS = ("-m", "--module")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--with-baseline", "train.py"], ["--with-baseline=60", "train.py"]),
        (["--with-baseline=40", "train.py"], None),
        (["--gpus", "2", "--with-baseline", "t.py"], ["--gpus", "2", "--with-baseline=60", "t.py"]),
        (["--gpus=2", "--with-baseline", "t.py"], ["--gpus=2", "--with-baseline=60", "t.py"]),
        (["-m", "--with-baseline", "pkg.t"], ["-m", "--with-baseline=60", "pkg.t"]),
        (["train.py", "--with-baseline"], None),  # the script's own
        (["--", "train.py", "--with-baseline"], None),
        (["--name", "--with-baseline", "t.py"], None),  # an odd name, but a name
        (["--gpus"], None),
        ([], None),
    ],
)
def test_bare_with_baseline(args: list[str], expected: list[str] | None) -> None:
    assert give_default(args, FLAGS) == (args if expected is None else expected)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parse a command line and return the RunOptions it yields."""
    seen: list[RunOptions] = []

    def keep(options: RunOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(run_module, "run", keep)
    monkeypatch.delenv("DIAG_RUNS_DIR", raising=False)

    def parse(*words: str) -> RunOptions:
        with pytest.raises(SystemExit) as ended:
            main.build()(["run", *words], prog_name="diag")
        assert ended.value.code == 0
        return seen.pop()

    return parse


def test_defaults(parsed: Any) -> None:
    assert parsed("train.py") == RunOptions("train.py", runs_dir=Path("diag-runs"))


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (("train.py", "--gpus", "9", "-m", "--help"), ("--gpus", "9", "-m", "--help")),
        (("train.py", "--", "x"), ("--", "x")),
        (("--", "train.py", "--", "x"), ("--", "x")),
        (("--", "train.py", "--debug"), ("--debug",)),
        (("train.py", "", " a b ", "$X", "*"), ("", " a b ", "$X", "*")),
    ],
)
def test_what_follows_the_script_is_the_scripts(
    parsed: Any, words: tuple[str, ...], args: tuple[str, ...]
) -> None:
    options = parsed(*words)
    assert (options.target, options.args, options.gpus) == ("train.py", args, None)


def test_every_option(parsed: Any) -> None:
    options = parsed(
        *[
            "--gpus",
            "4",
            "--device",
            "cpu",
            "--name",
            "n",
            "--runs-dir",
            "r",
            "--threads",
            "2",
            "--max-steps",
            "9",
            "--probes",
            "off",
        ],
        *[
            "--with-baseline=40",
            "--samples-per-step",
            "64",
            "--tee",
            "all",
            "--nnodes",
            "2",
            "--node-rank",
            "1",
        ],
        *[
            "--rdzv-endpoint",
            "h:1",
            "--rdzv-id",
            "j",
            "--max-restarts",
            "3",
            "-m",
            "pkg.train",
            "--lr",
            "1",
        ],
    )
    assert options == RunOptions(
        target="pkg.train",
        args=("--lr", "1"),
        module=True,
        gpus=4,
        device="cpu",
        name="n",
        runs_dir=Path("r"),
        threads=2,
        max_steps=9,
        baseline_steps=40,
        probes=False,
        samples_per_step=64,
        tee="all",
        nnodes=2,
        node_rank=1,
        rdzv_endpoint="h:1",
        rdzv_id="j",
        max_restarts=3,
    )


def test_bare_with_baseline_takes_the_script_as_script(parsed: Any) -> None:
    options = parsed("--with-baseline", "train.py", "40")
    assert (options.target, options.args) == ("train.py", ("40",))
    assert options.baseline_steps == arguments.DEFAULT_BASELINE_STEPS == 60
