"""Where elastic lets each rank write: logs/<rank>-<restart>/{stdout.log,stderr.log}."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std

from diag.launch.options import Tee as TeeChoice
from diag.launch.tee import Tee


def rank_log_dir(logs: Path, rank: int, restart: int) -> Path:
    """The directory of one rank's one life, named like its record's."""
    return logs / f"{rank:05d}-{restart}"


class RankLogs(LogsSpecs):
    """Redirects every rank into its own directory and has the chosen ones shown by `tee`."""

    def __init__(self, logs: Path, tee: Tee, choice: TeeChoice) -> None:
        super().__init__(log_dir=str(logs), redirects=Std.ALL)
        self._logs = logs
        self._show = tee
        self._choice = choice
        self.started_ns: int | None = None  # monotonic, when the first ranks were about to start

    @property
    def root_log_dir(self) -> str:
        return str(self._logs)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Called by elastic just before it starts the ranks, with their environments by local rank."""
        self.started_ns = self.started_ns or time.monotonic_ns()
        folders = {local: self._folder(env) for local, env in envs.items()}
        for local, env in envs.items():
            # @record of torch, and diag's own outcome, find their place by this variable.
            env["TORCHELASTIC_ERROR_FILE"] = str(folders[local] / "error.json")
            self._follow(int(env["RANK"]), folders[local])
        return LogsDest(
            stdouts=_files(folders, "stdout.log"),
            stderrs=_files(folders, "stderr.log"),
            error_files=_files(folders, "error.json"),
        )

    def _folder(self, env: dict[str, str]) -> Path:
        folder = rank_log_dir(
            self._logs, int(env["RANK"]), int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _follow(self, rank: int, folder: Path) -> None:
        if self._choice == "none" or (self._choice == "0" and rank != 0):
            return
        prefix = f"[rank {rank}] " if self._choice == "all" else ""
        self._show.follow(folder / "stdout.log", sys.stdout.buffer, prefix)
        self._show.follow(folder / "stderr.log", sys.stderr.buffer, prefix)


def _files(folders: dict[int, Path], name: str) -> dict[int, str]:
    return {local: str(folder / name) for local, folder in folders.items()}
