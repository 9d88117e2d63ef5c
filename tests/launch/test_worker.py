"""What a worker does around the script: when it installs, and the word it leaves."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diag.launch import worker
from diag.launch.afterimport import after_import
from diag.launch.environ import WorkerConfig
from diag.launch.limits import NotDistributed, StepLimitReached
from diag.launch.outcome import Outcome
from diag.launch.worker import Instruments, Place, exit_code, how_it_ended


def place(world_size: int = 2) -> Place:
    return Place(1, 1, 0, world_size, 0, None)


def config(**changed: Any) -> WorkerConfig:
    return WorkerConfig(
        **{
            "launcher_pid": os.getpid(),
            "run_dir": "/runs/x",
            "device": "cpu",
            "module": False,
            "probes": True,
            "guard": True,
            **changed,
        }
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was installed, in order."""
    seen: list[Any] = []
    session = SimpleNamespace(finish=lambda *words: seen.append(words))
    monkeypatch.setattr(worker, "_install_probes", lambda *_: seen.append("probes") or session)
    limits = SimpleNamespace(install=lambda *limit: seen.append(limit))
    monkeypatch.setitem(sys.modules, "diag.launch.limits", limits)
    monkeypatch.setattr("diag.launch.limits", limits)
    return seen


def test_limits_come_after_the_probes(installed: list[Any]) -> None:
    Instruments(config(max_steps=3), place()).install()
    assert installed == ["probes", (3, True)]


@pytest.mark.parametrize(
    ("changed", "world_size", "expected"),
    [
        ({"probes": False}, 2, [(None, True)]),
        ({}, 1, ["probes"]),  # one rank need not distribute anything
        ({"guard": False, "probes": False}, 2, []),
        ({"guard": False, "probes": False, "max_steps": 4}, 2, [(4, False)]),
    ],
)
def test_only_what_is_wanted(
    installed: list[Any], changed: dict[str, Any], world_size: int, expected: list[Any]
) -> None:
    Instruments(config(**changed), place(world_size)).install()
    assert installed == expected


def test_nothing_in_a_forked_child(installed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    instruments = Instruments(config(), place())
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    instruments.install()
    assert installed == []


def test_a_failure_to_install_does_not_reach_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(worker, "_install_probes", lambda *_: 1 / 0)
    Instruments(config(), place()).install()
    assert capsys.readouterr().err.startswith("diag: rank 1: nothing is recorded: ZeroDivision")


def test_probes_hear_how_it_ended(installed: list[Any]) -> None:
    instruments = Instruments(config(guard=False), place())
    instruments.finish(Outcome(1, 0, "script", 0, 0))  # torch was never imported
    instruments.install()
    instruments.finish(Outcome(1, 0, "not-distributed", 2, 0, {"type": "NotDistributed"}))
    assert installed == ["probes", ("exception", {"type": "NotDistributed"})]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("script", 0)),
        (SystemExit(), ("script", 0)),
        (SystemExit(3), ("script", 3)),
        (StepLimitReached(), ("max-steps", 0)),
        (NotDistributed(None), ("not-distributed", 2)),
        (KeyboardInterrupt(), ("exception", 130)),
        (ValueError(), ("exception", 1)),
    ],
)
def test_how_it_ended(error: BaseException | None, expected: tuple[str, int]) -> None:
    assert how_it_ended(error) == expected


@pytest.mark.parametrize(
    ("code", "expected"), [(None, 0), (0, 0), (256, 0), (-1, 255), (True, 1), ("text", 1), ((), 1)]
)
def test_exit_codes_as_python_has_them(code: object, expected: int) -> None:
    assert exit_code(code) == expected


def test_an_import_that_fails_is_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    calls: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    after_import("diag_test_late", lambda: calls.append("now"))
    assert importlib.util.find_spec("diag_test_late") is None
    (tmp_path / "diag_test_late.py").write_text("import os\nif 'FAIL' in os.environ: 1/0\nx = 1")
    importlib.invalidate_caches()
    monkeypatch.setenv("FAIL", "1")
    assert importlib.util.find_spec("diag_test_late") is not None  # looking is not importing
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("diag_test_late")
    assert calls == []
    monkeypatch.delenv("FAIL")
    assert importlib.import_module("diag_test_late").x == 1
    assert calls == ["now"]
    after_import("diag_test_late", lambda: calls.append("already"))
    assert calls == ["now", "already"]
    del sys.modules["diag_test_late"]
