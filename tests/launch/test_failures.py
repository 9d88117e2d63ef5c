"""Runs that end badly: exit codes, the first failing rank, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from helpers.launching import (
    Finished,
    is_alive,
    run_diag,
    run_json,
    started_diag,
    wait_until,
)

pytestmark = pytest.mark.ranks
TWO = ["run", "--gpus", "2", "--device", "cpu", "--name", "n"]


def write(path: Path, source: str) -> str:
    path.write_text(dedent(source))
    return path.name


def own_error(run: Finished) -> list[str]:
    lines = run.err.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith("error[")]
    return lines[start:]


# Most scripts here do without torch, so that their ranks start fast; what is tested is the
# launcher's.


def test_the_first_failing_rank_and_a_peer_that_will_not_go(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import os, signal, sys, time
        from pathlib import Path
        def main():
            if os.environ["RANK"] == "1":
                while not Path("deaf").exists(): time.sleep(0.01)
                raise ValueError("boom")
            signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
            Path("deaf").touch()
            time.sleep(60); time.sleep(60)
        main()
        """,
    )
    run = run_diag(*TWO, script, cwd=tmp_path, timeout=25)  # elastic alone would wait 30 s
    assert run.code == 1
    assert run.out == "no\n"
    shown = run.err.splitlines()
    assert shown[1:6] == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/train.py", line 11, in <module>',
        "    main()",
        f'  File "{tmp_path}/train.py", line 7, in main',
        '    raise ValueError("boom")',
    ]
    assert own_error(run) == [
        "error[rank-failed]: rank 1 of 2 failed: ValueError: boom (train.py:7 in main)",
        "hint: every rank's output is in diag-runs/n/logs",
    ]
    facts = run_json(tmp_path / "diag-runs/n")
    assert (facts["ended_by"], facts["exit_code"]) == ("script", 1)
    # Elastic's own words are kept, not shown.
    assert "closing signal" in (tmp_path / "diag-runs/n/logs/launcher-0.log").read_text()


@pytest.mark.parametrize(
    ("ending", "code", "word", "what"),
    [
        ("sys.exit(7)", 7, "script", "rank 1 of 2 exited with code 7"),
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            139,
            "signal",
            "rank 1 of 2 was killed by SIGSEGV",
        ),
    ],
)
def test_exit_codes(tmp_path: Path, ending: str, code: int, word: str, what: str) -> None:
    script = write(
        tmp_path / "train.py",
        f"""
        import os, signal, sys, time
        if os.environ["RANK"] == "1":
            print("last words", file=sys.stderr)
            {ending}
        time.sleep(60)
        """,
    )
    run = run_diag(*TWO, script, cwd=tmp_path)
    assert run.code == code
    assert own_error(run)[0] == f"error[rank-failed]: {what}"
    assert "last words\n" in run.err  # rank 1 is not teed; its end is shown all the same
    facts = run_json(tmp_path / "diag-runs/n")
    assert (facts["ended_by"], facts["exit_code"]) == (word, code)


def test_undistributed_script_is_told_once_and_finally_runs(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import torch
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            print("a step was taken")
        finally:
            print("finally")
        """,
    )
    run = run_diag(*TWO, script, cwd=tmp_path)
    assert run.code == 2
    assert "a step was taken" not in run.out
    assert run.err.count("init_process_group()") == 1
    assert own_error(run)[0].startswith("error[not-distributed]: train.py was stopped")
    facts = run_json(tmp_path / "diag-runs/n")
    assert (facts["ended_by"], facts["exit_code"]) == ("diag", 2)


def test_failing_baseline_stops_there(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "raise SystemExit('no data')")
    run = run_diag(*TWO, "--with-baseline", script, cwd=tmp_path)
    assert run.code == 1
    assert "no data\n" in run.err
    assert own_error(run) == [
        "error[rank-failed]: the script exited with code 1",
        "hint: every rank's output is in diag-runs/n-baseline/logs",
        "diag: the baseline failed, so the run was not started",
    ]
    assert [p.name for p in (tmp_path / "diag-runs").iterdir()] == ["n-baseline"]


WAITING = """
    import os, signal, sys, time
    from pathlib import Path
    if os.environ["RANK"] == "1":  # as deaf as a rank inside a collective's C++ wait
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    Path(f"pid{os.environ['RANK']}.tmp").write_text(str(os.getpid()))
    os.replace(f"pid{os.environ['RANK']}.tmp", f"pid{os.environ['RANK']}")
    try:
        time.sleep(60)
    finally:
        print("finally", flush=True)
"""


def pids(folder: Path) -> list[int]:
    """The ranks' process ids, once both are up."""
    files = [folder / "pid0", folder / "pid1"]
    wait_until(lambda: all(f.exists() for f in files), 40, "the ranks are up")
    return [int(f.read_text()) for f in files]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_to_the_launcher(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = write(tmp_path / "train.py", WAITING)
    with started_diag(*TWO, script, cwd=tmp_path) as process:
        ranks = pids(tmp_path)
        process.send_signal(number)
        wait_until(lambda: not any(map(is_alive, ranks)), 5, "no rank survives")
        assert process.wait(timeout=20) == code
    facts = run_json(tmp_path / "diag-runs/n")
    if number == signal.SIGKILL:
        assert facts["ended_by"] is None
        return
    assert (facts["ended_by"], facts["exit_code"]) == ("signal", code)
    assert "diag: interrupted" in (tmp_path / "err").read_text()
    # Ctrl-C reaches a script as KeyboardInterrupt, as it would without diag.
    assert ("finally" in (tmp_path / "out").read_text()) is (number == signal.SIGINT)


def test_ignored_hangup_stays_ignored_and_a_taken_name_gets_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "diag-runs/n").mkdir(parents=True)
    script = write(
        tmp_path / "train.py",
        """
        import os, time
        from pathlib import Path
        Path("up").touch()
        while not Path("go").exists(): time.sleep(0.02)
        print(os.environ["DIAG_RUN_DIR"])
        """,
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with started_diag("run", "--device", "cpu", "--name", "n", script, cwd=tmp_path) as process:
            wait_until((tmp_path / "up").exists, 40, "the rank is up")
            process.send_signal(signal.SIGHUP)
            (tmp_path / "go").touch()
            assert process.wait(timeout=20) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "out").read_text() == f"{tmp_path}/diag-runs/n-2\n"
    assert list((tmp_path / "diag-runs/n").iterdir()) == []


def test_port_in_use(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "print('never')")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = run_diag(*TWO, "--rdzv-endpoint", f"127.0.0.1:{port}", script, cwd=tmp_path)
    assert (run.code, run.out) == (3, "")
    assert own_error(run)[0] == f"error[port-in-use]: port {port} is already in use on this machine"
    assert not (tmp_path / "diag-runs").exists()


BAD: dict[str, tuple[list[str], int, str]] = {
    "no such script": (["nowhere.py"], 2, "error[no-such-script]: no such script: nowhere.py"),
    "a directory": (["."], 2, "error[script-is-directory]: . is a directory, not a script"),
    "a syntax error": (["broken.py"], 2, "error[syntax-error]: broken.py:2: invalid syntax"),
    "no GPUs": (["--gpus", "0", "t.py"], 2, "error[bad-number]: --gpus 0: it must be 1 or more"),
    "negative": (["--gpus", "-1", "t.py"], 2, "error[bad-number]: --gpus -1: it must be 1 or more"),
    "words": (["--gpus", "two", "t.py"], 2, ""),
    "no script": (["--gpus", "2"], 2, ""),
    "no such option": (["--gpsu", "2", "t.py"], 2, ""),
    "no such device": (["--device", "tpu", "t.py"], 2, ""),
    "a bad name": (
        ["--name", "../x", "t.py"],
        2,
        "error[bad-run-name]: '../x' cannot be a run's name",
    ),
    "no such module": (["-m", "no.such"], 2, "error[no-such-module]: no module named no.such"),
    "a bad endpoint": (
        ["--rdzv-endpoint", "host", "t.py"],
        2,
        "error[bad-endpoint]: --rdzv-endpoint 'host': expected HOST:PORT with a port from",
    ),
    "runs-dir is a file": (
        ["--device", "cpu", "--runs-dir", "t.py", "t.py"],
        3,
        "error[runs-dir-not-writable]: cannot create a run in t.py: File exists",
    ),
}


@pytest.mark.parametrize(("words", "code", "line"), BAD.values(), ids=list(BAD))
def test_bad_input(tmp_path: Path, words: list[str], code: int, line: str) -> None:
    write(tmp_path / "t.py", "print('never')")
    write(tmp_path / "broken.py", "x = 1\ny = = 2\n")
    run = run_diag("run", *words, cwd=tmp_path)
    assert (run.code, run.out) == (code, "")
    assert "Traceback" not in run.err
    if line:
        assert own_error(run)[0] == line
    else:
        assert "Usage: diag run" in run.err
    assert not (tmp_path / "diag-runs").exists()


def test_debug_shows_where(tmp_path: Path) -> None:
    run = run_diag("--debug", "run", "nowhere.py", cwd=tmp_path)
    assert run.code == 2
    assert "Traceback (most recent call last):" in run.err
    assert own_error(run)[0] == "error[no-such-script]: no such script: nowhere.py"


def test_a_bug_of_diags_is_no_traceback_either(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from diag.cli import main
    from diag.cli import run as run_module

    monkeypatch.setattr(run_module, "run", lambda _options: 1 // 0)
    with pytest.raises(SystemExit) as ended:
        main.build()(["run", "x.py"], prog_name="diag")
    assert ended.value.code == 3
    err = capsys.readouterr().err
    assert err.startswith("error[internal]: ZeroDivisionError")
    assert "Traceback" not in err
    assert os.environ.get("DIAG_WORKER") is None
