"""Showing growing files."""

from __future__ import annotations

import io
from pathlib import Path

from diag.launch.tee import Tee
from helpers.launching import wait_until


def test_bytes_pass_untouched_while_the_file_grows(tmp_path: Path) -> None:
    path, out = tmp_path / "stdout.log", io.BytesIO()
    with Tee() as tee:
        tee.follow(path, out)  # before it exists
        with path.open("wb", buffering=0) as log:
            log.write(b"10%\r20%\r")  # a progress bar has no line ends
            wait_until(lambda: out.getvalue() == b"10%\r20%\r", 5, "shown while it grows")
            log.write("100%\né".encode())
    assert out.getvalue() == "10%\r20%\r100%\né".encode()


def test_prefix_before_whole_lines_only(tmp_path: Path) -> None:
    out = io.BytesIO()
    logs = [tmp_path / "0", tmp_path / "1"]
    with Tee() as tee:
        for rank, path in enumerate(logs):
            tee.follow(path, out, f"[rank {rank}] ")
        logs[0].write_bytes(b"half a ")
        wait_until(lambda: tee._files[0].pending == b"half a ", 5, "read")
        assert out.getvalue() == b""
        with logs[0].open("ab") as log:
            log.write(b"line\nanother\nrest")
        wait_until(lambda: b"another" in out.getvalue(), 5, "shown")
        logs[1].write_bytes(b"\n")
    lines = out.getvalue().splitlines()
    assert lines[:2] == [b"[rank 0] half a line", b"[rank 0] another"]
    assert sorted(lines[2:]) == [b"[rank 0] rest", b"[rank 1] "]


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        writes = 0

        def write(self, _data: object) -> int:
            Broken.writes += 1
            raise BrokenPipeError

    path, good = tmp_path / "log", io.BytesIO()
    with Tee() as tee:
        tee.follow(path, Broken())
        tee.follow(path, good)
        with path.open("wb", buffering=0) as log:
            log.write(b"a\n")
            wait_until(lambda: good.getvalue() == b"a\n", 5, "shown")
            log.write(b"b\n")
    assert good.getvalue() == b"a\nb\n"
    assert Broken.writes == 1  # and it is not tried again


def test_a_file_that_never_comes(tmp_path: Path) -> None:
    out = io.BytesIO()
    with Tee() as tee:
        tee.follow(tmp_path / "nothing", out)
    assert out.getvalue() == b""
