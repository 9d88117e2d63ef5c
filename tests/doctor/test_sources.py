"""Every source by itself: one that fails, hangs or dies takes no other with it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diag.doctor.codec import decode_or_missing
from diag.doctor.facts import FileSystem, Missing, TorchRuntime
from diag.doctor.sources import Absent, Failed, Source, ask_all, guarded, run_child


def raising(error: BaseException) -> object:
    raise error


def test_outcomes_of_one_source() -> None:
    assert guarded(lambda: 7) == 7
    assert guarded(lambda: raising(Absent("no driver"))) == Missing("absent", "no driver")
    assert guarded(lambda: raising(Failed("mismatch"))) == Missing("failed", "mismatch")
    assert guarded(lambda: raising(OSError("x"))) == Missing("failed", "OSError: x")
    late = subprocess.TimeoutExpired("x", 2.5)
    assert guarded(lambda: raising(late)) == Missing("timeout", "no answer within 2.5 s")


def test_a_source_that_hangs_is_left_behind_at_its_limit() -> None:
    release = threading.Event()
    start = time.monotonic()
    answers = ask_all(
        {
            "hangs": Source(release.wait, 0.2),
            "breaks": Source(lambda: raising(RuntimeError("no")), 5.0),
            "works": Source(lambda: 7, 5.0),
        }
    )
    release.set()
    assert time.monotonic() - start < 2.0
    assert answers == {
        "hangs": Missing("timeout", "no answer within 0.2 s"),
        "breaks": Missing("failed", "RuntimeError: no"),
        "works": 7,
    }


def test_a_child_answers(tmp_path: Path) -> None:
    answer = decode_or_missing(FileSystem, run_child("file-system", 20.0, str(tmp_path)))
    assert isinstance(answer, FileSystem)
    assert answer.path == str(tmp_path)


def test_torch_answers_from_a_child() -> None:
    answer = decode_or_missing(TorchRuntime, run_child("torch", 60.0))
    assert isinstance(answer, TorchRuntime)
    assert answer.error is None


def test_a_child_past_its_limit_is_killed() -> None:
    before = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_child("torch", 0.01)
    assert time.monotonic() - before < 5.0


def test_a_child_that_dies_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho first >&2\necho Bus error >&2\nexit 7\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(Failed, match="ended with 7: Bus error"):
        run_child("torch", 20.0)


def test_a_source_that_the_child_does_not_know_is_a_failed_one() -> None:
    answer = decode_or_missing(FileSystem, run_child("weather", 20.0))
    assert answer == Missing("failed", "KeyError: 'weather'")


def test_a_child_that_answers_nonsense_is_a_failed_source() -> None:
    def nonsense() -> object:
        return decode_or_missing(FileSystem, {"path": 3})

    answer = guarded(nonsense)
    assert isinstance(answer, Missing)
    assert "FileSystem" in answer.why


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, diag.doctor.collect, diag.doctor.catalogue, diag.cli.doctor;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pyarrow', 'pandas', 'psutil')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
