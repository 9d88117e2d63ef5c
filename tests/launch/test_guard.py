"""No rank outlives its launcher: each of the two nets alone, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diag.launch.guard import die_with
from helpers.launching import is_alive, wait_until

# A launcher that starts one rank and waits; the rank leaves its pid in a file and sleeps.
LAUNCHER = """
import subprocess, sys, os
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True).wait()
"""
RANK = """
import os, sys, time
from pathlib import Path
from diag.launch import guard
{sabotage}
guard.die_with(int(sys.argv[1]))
Path("pid.tmp").write_text(str(os.getpid()))
os.replace("pid.tmp", "pid")
time.sleep(60)
"""
NETS = {
    "both": "",
    "the kernel alone": "guard._poll = lambda pid: None",
    "the thread alone": "guard._ask_kernel = lambda: None",
}


@pytest.mark.parametrize("sabotage", NETS.values(), ids=list(NETS))
def test_a_killed_launcher_takes_its_ranks_along(tmp_path: Path, sabotage: str) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK.format(sabotage=sabotage)], cwd=tmp_path
    )
    try:
        wait_until((tmp_path / "pid").exists, 20, "the rank is up")
        rank = int((tmp_path / "pid").read_text())
        launcher.send_signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(rank), 5, "the rank is gone")
    finally:
        launcher.kill()
        launcher.wait()


def test_a_rank_born_an_orphan_exits_at_once() -> None:
    # The launcher died before the rank could ask the kernel: its parent is another process.
    pid = os.fork()
    if pid == 0:
        die_with(launcher_pid=1 if os.getppid() != 1 else 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGKILL
