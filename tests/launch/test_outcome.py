"""Which of several failing ranks failed by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from diag.launch.outcome import (
    Outcome,
    RankFailure,
    first_failure,
    last_attempt,
    read_outcomes,
)

ECHOES = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
    "[127.0.0.1]:3209. This is typically caused by a remote worker crashing.",
    "Connection reset by peer",
    "NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote "
    "process exiting prematurely.",
    "recvValue failed on SocketImpl(fd=3): failed to recv, got 0 bytes",
    "Broken pipe",
)


def raised(rank: int, message: str, time_ns: int, code: int = 1) -> RankFailure:
    error = {"type": "RuntimeError", "message": message, "file": "t.py", "line": 1, "function": "f"}
    outcome = Outcome(rank, 0, "exception", code, time_ns, error)
    return RankFailure(rank, code, time_ns, outcome)


def exited(rank: int, code: int, time_ns: int) -> RankFailure:
    return RankFailure(rank, code, time_ns, Outcome(rank, 0, "script", code, time_ns))


def killed(rank: int, number: int, time_ns: int) -> RankFailure:
    return RankFailure(rank, -number, time_ns)


def guilty(*failures: RankFailure) -> int:
    first = first_failure(failures)
    assert first is not None
    return first.rank


def test_the_earliest_exception() -> None:
    assert guilty(raised(0, "b", 20), raised(1, "a", 10)) == 1


@pytest.mark.parametrize("echo", ECHOES)
def test_an_echo_is_never_the_cause(echo: str) -> None:
    assert guilty(raised(0, echo, 10), raised(1, "out of data", 20)) == 1
    assert guilty(raised(0, echo, 10), killed(1, 9, 2_000_000_000)) == 1
    assert guilty(raised(0, echo, 10), exited(1, 3, 20)) == 1


def test_ranks_ended_by_elastic_come_last() -> None:
    assert guilty(killed(0, 15, 1), raised(1, "boom", 2)) == 1
    assert guilty(killed(0, 15, 1), raised(1, ECHOES[0], 2)) == 1
    assert guilty(killed(0, 15, 1)) == 0


def test_an_exception_before_a_signal() -> None:
    # With sizes that differ, gloo aborts the innocent rank.
    assert guilty(killed(0, 6, 1), raised(1, "boom", 2)) == 1


def test_nobody() -> None:
    assert first_failure(()) is None


@pytest.mark.parametrize(("code", "shell"), [(3, 3), (1, 1), (-9, 137), (-15, 143), (-11, 139)])
def test_exit_codes_as_a_shell_has_them(code: int, shell: int) -> None:
    assert RankFailure(0, code, 0).shell_code == shell


def test_signal_names() -> None:
    assert killed(0, 11, 0).signal_name == "SIGSEGV"
    assert killed(0, 63, 0).signal_name == "signal 63"
    assert exited(0, 3, 0).signal_name is None


def test_outcomes_of_the_last_attempt(tmp_path: Path) -> None:
    (tmp_path / "launcher-0.log").touch()
    first = Outcome(0, 0, "exception", 1, 5, {"type": "E"}, "Traceback …")
    last = Outcome(1, 1, "max-steps", 0, 7)
    for outcome in (first, last):
        folder = tmp_path / f"{outcome.rank:05d}-{outcome.restart}"
        folder.mkdir()
        outcome.write(folder)
    (tmp_path / "00002-1").mkdir()
    (tmp_path / "00002-1" / "outcome.json").write_text('{"rank": 2')  # torn
    assert last_attempt(tmp_path) == 1
    assert read_outcomes(tmp_path) == (last,)
    assert read_outcomes(tmp_path / "nowhere") == ()
