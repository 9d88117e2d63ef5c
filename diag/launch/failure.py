"""What a user reads when a run fails. Pure text; the caller prints it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diag.errors import DiagError, ExitCode
from diag.launch.outcome import RankFailure
from diag.launch.plan import Endpoint

_STDERR_TAIL_LINES = 15
_WANTS_GPU = re.compile(r"nccl|cuda|nvidia", re.IGNORECASE)
_SIGNAL_HINTS = {
    "SIGKILL": "nobody but the system sends SIGKILL unasked: look for `Out of memory` in dmesg",
    "SIGBUS": "often a full /dev/shm: give the container more (--shm-size), or use fewer "
    "loader workers",
}


@dataclass(frozen=True)
class FailureText:
    """What happened, and what lets the reader see it: the traceback, or the end of stderr."""

    evidence: str
    what: str
    hint: str


def describe_failure(
    failure: RankFailure, world_size: int, rehearsal: bool, stderr: str, logs: Path
) -> FailureText:
    """Put the first failing rank into words.

    Args:
        stderr: all the rank wrote there; its end is shown where there is no traceback.
    """
    who = f"rank {failure.rank} of {world_size}" if world_size > 1 else "the script"
    outcome = failure.outcome
    hints = [f"every rank's output is in {logs}"]
    if failure.signal_name:
        late = outcome is not None and outcome.exit_code == 0
        what = f"{who} was killed by {failure.signal_name}" + (
            ", after its script had ended" if late else ""
        )
        hints.insert(0, _SIGNAL_HINTS.get(failure.signal_name, ""))
    elif outcome is not None and outcome.error is not None:
        what = f"{who} failed: {one_line(outcome.error)}"
        own = str(outcome.error.get("hint") or "").rstrip(".")
        hints.insert(0, own or (_rehearsal_hint(outcome.error) if rehearsal else ""))
    else:
        what = f"{who} exited with code {failure.exit_code}"
    evidence = outcome.traceback if outcome is not None else ""
    return FailureText(evidence or tail(stderr), what, "; ".join(h for h in hints if h))


def one_line(error: dict[str, Any]) -> str:
    """`ValueError: message (train.py:12 in main)`."""
    lines = str(error.get("message") or "").strip().splitlines()
    text = f"{error.get('type')}: {lines[0][:200]}" if lines else str(error.get("type"))
    if not error.get("file"):
        return text
    function = str(error.get("function"))
    inside = "" if function == "<module>" else f" in {function}"
    return f"{text} ({Path(str(error['file'])).name}:{error.get('line')}{inside})"


def _rehearsal_hint(error: dict[str, Any]) -> str:
    if not _WANTS_GPU.search(str(error.get("message"))):
        return ""
    return (
        "this is a rehearsal without a GPU: let the script choose by torch.cuda.is_available(), "
        "and call init_process_group() without a backend"
    )


def tail(text: str) -> str:
    """The last lines of a log."""
    lines = text.rstrip().splitlines()
    return "\n".join(lines[-_STDERR_TAIL_LINES:]) + "\n" if lines else ""


def port_in_use(endpoint: Endpoint | None) -> DiagError:
    """Another process holds the port that node 0 must open."""
    port = endpoint.port if endpoint else "?"
    return DiagError(
        "port-in-use",
        f"port {port} is already in use on this machine",
        "choose another port in --rdzv-endpoint (the same on every node), or find what holds "
        f"it: ss -ltnp 'sport = :{port}'",
    )


def not_distributed(script: str, world_size: int, error: dict[str, Any] | None) -> DiagError:
    """A script that distributes nothing was about to take its first step on several ranks."""
    place = (
        f"{Path(str(error['file'])).name}:{error['line']}" if error and error.get("file") else ""
    )
    return DiagError(
        "not-distributed",
        f"{script} was stopped before its first optimizer step"
        f"{f' ({place})' if place else ''}: {world_size} ranks run it, but it distributes "
        f"nothing, so they would train {world_size} copies. It needs these three lines:\n"
        "    torch.distributed.init_process_group()  # at the start\n"
        "    model = torch.nn.parallel.DistributedDataParallel(model)  # on its device\n"
        "    loader = DataLoader(dataset, sampler=DistributedSampler(dataset), ...)",
        "on GPUs, also torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) at the start; "
        "to run copies on purpose, set DIAG_OFF=1",
        ExitCode.USAGE,
    )
