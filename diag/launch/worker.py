"""What elastic starts once per rank: `python -u -P -m diag.launch.worker SCRIPT ARGS…`.

It behaves exactly like `python SCRIPT ARGS…` (or `python -m`), with three things around it:
probes and limits installed as soon as the script imports torch, an outcome written when it ends,
and no way to outlive the launcher.
"""

from __future__ import annotations

import os
import sys

from diag.launch.environ import WorkerConfig
from diag.launch.guard import die_with

if __name__ == "__main__":  # before anything that takes time
    die_with(WorkerConfig.from_env(os.environ).launcher_pid)

import atexit
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from diag.launch import mainmodule, tracebacks
from diag.launch.afterimport import after_import
from diag.launch.outcome import Ended, Outcome

_INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
    """Where this rank stands, from torchrun's variables."""

    rank: int
    local_rank: int
    node: int
    world_size: int
    restart: int
    outcome_dir: Path | None

    @classmethod
    def from_env(cls) -> Place:
        error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        return cls(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            node=int(os.environ["GROUP_RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
            outcome_dir=Path(error_file).parent if error_file else None,
        )


class Instruments:
    """Probes and limits, installed when torch is there."""

    def __init__(self, config: WorkerConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._session: Any = None
        self._pid = os.getpid()

    def install(self) -> None:
        """Never raises: it runs inside the script's `import torch`."""
        if os.getpid() != self._pid:  # a child forked before that import: no rank of ours
            return
        try:
            self._install()
        except Exception as error:
            rank = self._place.rank
            print(f"diag: rank {rank}: nothing is recorded: {error!r}", file=sys.stderr)

    def _install(self) -> None:
        config, place = self._config, self._place
        if config.probes:
            self._session = _install_probes(config, place)
        guard = config.guard and place.world_size > 1
        if guard or config.max_steps is not None:
            from diag.launch import limits

            # After the probes: the hook that ends the script must be the last to run.
            limits.install(config.max_steps, guard)

    def finish(self, outcome: Outcome) -> None:
        if self._session is not None:
            ended = "exception" if outcome.ended == "not-distributed" else outcome.ended
            self._session.finish(ended, outcome.error)


def _install_probes(config: WorkerConfig, place: Place) -> Any:
    from diag.probes import ProbeConfig, install
    from diag.record.store import RunDir

    return install(
        ProbeConfig(
            directory=RunDir(Path(config.run_dir)).rank_dir(place.rank, place.restart),
            rank=place.rank,
            local_rank=place.local_rank,
            node=place.node,
            world_size=place.world_size,
            restart=place.restart,
            device=config.device,
            samples_per_step=config.samples_per_step,
        )
    )


def main() -> None:
    """Run the script this process was started for, and leave as it would."""
    config = WorkerConfig.from_env(os.environ)
    place = Place.from_env()
    target, args = sys.argv[1], sys.argv[2:]
    instruments = Instruments(config, place)
    after_import("torch", instruments.install)

    # Registered before any handler of the script's, so that it runs after them; by then the
    # script's threads have been joined too.
    teardown = Teardown()
    atexit.register(teardown)
    become = mainmodule.become_module if config.module else mainmodule.become_script
    error = _run(become, target, args)
    outcome = _outcome(place, error)
    instruments.finish(outcome)
    _write(outcome, place.outcome_dir)
    teardown.wanted = outcome.exit_code == 0
    _leave(error, outcome.exit_code)


class Teardown:
    """What is left to do at the very end, if the script ended well."""

    wanted = False

    def __call__(self) -> None:
        if self.wanted:
            from diag.launch.teardown import leave_process_group

            leave_process_group(sys.modules["__main__"])


Become = Callable[[str, list[str]], tuple[ModuleType, CodeType]]


def _run(become: Become, target: str, args: list[str]) -> BaseException | None:
    """What the script raised, its traceback trimmed; or None."""
    try:
        module, code = become(target, args)
        mainmodule.run_code(code, module)
    except BaseException as error:
        tracebacks.trim(error)
        return error
    return None


def _outcome(place: Place, error: BaseException | None) -> Outcome:
    ended, code = how_it_ended(error)
    is_failure = ended in ("exception", "not-distributed")
    return Outcome(
        rank=place.rank,
        restart=place.restart,
        ended=ended,
        exit_code=code,
        time_ns=time.time_ns(),
        error=_describe(error) if error is not None and is_failure else None,
        traceback=tracebacks.text_of(error) if error is not None and ended == "exception" else "",
    )


def how_it_ended(error: BaseException | None) -> tuple[Ended, int]:
    """The word for it, and the exit code Python gives for what the script raised."""
    limits = sys.modules.get("diag.launch.limits")
    if error is None:
        return "script", 0
    if limits is not None and isinstance(error, limits.StepLimitReached):
        return "max-steps", 0
    if limits is not None and isinstance(error, limits.NotDistributed):
        return "not-distributed", 2
    if isinstance(error, SystemExit):
        return "script", exit_code(error.code)
    return "exception", _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def exit_code(code: object) -> int:
    """What Python exits with after sys.exit(`code`): None is 0, a message is 1, a number its low byte."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _describe(error: BaseException) -> dict[str, Any]:
    described = tracebacks.describe(error)
    location = getattr(error, "location", None)
    if location:
        described |= location
    return described


def _write(outcome: Outcome, directory: Path | None) -> None:
    if directory is None:
        return
    try:
        outcome.write(directory)
    except OSError as error:  # a full disk must not turn a good run into a bad one
        print(f"diag: rank {outcome.rank}: cannot write its outcome: {error}", file=sys.stderr)


def _leave(error: BaseException | None, code: int) -> None:
    """Exit as Python would after `error`."""
    if error is None:
        return
    if isinstance(error, SystemExit):
        # Python prints its message and takes its code. Its traceback would keep the script's
        # locals, and a DDP module among them, alive through the teardown.
        raise error.with_traceback(None)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(code)


if __name__ == "__main__":
    # The script takes this module's place as __main__; it stays known under its own name.
    sys.modules["diag.launch.worker"] = sys.modules["__main__"]
    main()
