"""Saves that are killed; `python -m helpers.checkpoint_kill DIRECTORY` leaves told.json.

`kill -9` before each single change a save makes to the file system, and in the middle of writing.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diag.engine.checkpoint import Naming, Parts, load_state, save_state
from diag.engine.process import Process, join_job
from diag.errors import DiagError
from helpers.forked import fork, start_ranks, wait

ALONE = Process(0, 0, 1, 1, torch.device("cpu"), None)
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def parts_of(value: float, size: int = 3) -> Parts:
    model = torch.nn.Linear(size, size)
    model.weight.data.fill_(value)
    return Parts(models=[model], optimizers=[torch.optim.SGD(model.parameters(), lr=value)])


def die_at(change: int) -> list[str]:
    """Kill this process before its `change`-th change to the file system; the changes so far."""
    seen: list[str] = []

    def count(what: str) -> None:
        seen.append(what)
        if len(seen) == change:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        if opened or event in _CHANGES:
            count(event)

    sys.addaudithook(audit)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        count("fsync")
        fsync(descriptor)

    os.fsync = counted
    return seen


def loaded(directory: Path | None, naming: Naming) -> float | str:
    """The value of the checkpoint that loads; the error's slug if none does."""
    parts = parts_of(0.0)
    try:
        load_state(directory, parts, ALONE, naming=naming)
    except DiagError as error:
        return error.slug
    weight = parts.models[0].get_parameter("weight")
    values = {*weight.flatten().tolist(), parts.optimizers[0].param_groups[0]["lr"]}
    return values.pop() if len(values) == 1 else "mixed"


def everywhere(folder: Path, over: bool) -> list[dict[str, Any]]:
    """Kill a second save at every change in turn; what loads afterwards, and then after a third.

    Args:
        over: the second save goes to the first one's directory; else to a new, numbered one, and
            only one is to be kept.
    """
    first = folder / "first" / "checkpoints" / "checkpoint_0"
    save_state(first, parts_of(1.0), ALONE)
    told: list[dict[str, Any]] = []
    while not told or told[-1]["code"]:
        here = folder / str(len(told) + 1)
        shutil.copytree(folder / "first", here)
        told.append(killed_at(len(told) + 1, here, over))
    return told


def killed_at(change: int, here: Path, over: bool) -> dict[str, Any]:
    naming = Naming(here, automatic_checkpoint_naming=True, total_limit=1)
    folder = here / "checkpoints"
    target = folder / "checkpoint_0" if over else None

    def second() -> None:
        die_at(change)
        save_state(target, parts_of(2.0), ALONE, naming=naming)

    code = wait(fork(second, {}), time.monotonic() + 20)
    names = sorted(path.name for path in folder.iterdir())
    after = loaded(target, naming)
    save_state(target, parts_of(3.0), ALONE, naming=naming)
    left = [path.name for path in folder.rglob("*") if "incomplete" in path.name]
    kept = len([path for path in folder.rglob("*") if path.is_dir()])
    third = loaded(target, naming)
    return {
        "code": code,
        "names": names,
        "after": after,
        "left": left,
        "kept": kept,
        "third": third,
    }


def while_writing(folder: Path) -> dict[str, Any]:
    """`kill -9` from outside while a large file grows."""
    naming = Naming(folder, automatic_checkpoint_naming=True)
    save_state(None, parts_of(1.0, 3000), ALONE, naming=naming)
    pid = fork(lambda: save_state(None, parts_of(2.0, 3000), ALONE, naming=naming), {})
    half = folder / "checkpoints" / "checkpoint_1.incomplete"
    size = 0
    deadline = time.monotonic() + 20
    while size < 1 << 20 and time.monotonic() < deadline:
        size = max((f.stat().st_size for f in half.rglob("*.distcp")), default=0)
    os.kill(pid, signal.SIGKILL)
    code = wait(pid, time.monotonic() + 20)
    written = max((f.stat().st_size for f in half.rglob("*.distcp")), default=0)
    parts = parts_of(0.0, 3000)
    found = load_state(None, parts, ALONE, naming=naming).directory.name
    value = parts.models[0].get_parameter("weight").detach().mean().item()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return {"code": code, "written": written, "found": found, "value": value, "names": names}


def disk_full(folder: Path) -> dict[str, Any]:
    """A file that may not grow; the error, and what is left."""
    save_state(folder / "good", parts_of(1.0), ALONE)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        answers = []
        for target in ("good", "new"):
            try:
                save_state(folder / target, parts_of(2.0, 1000), ALONE)
            except DiagError as error:
                answers.append([error.slug, error.what])
        (folder / "error.json").write_text(json.dumps(answers))

    wait(fork(full, {}), time.monotonic() + 20)
    errors = json.loads((folder / "error.json").read_text())
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.incomplete"))
    return {"errors": errors, "left": left, "value": loaded(folder / "good", Naming())}


def one_of_two(rank: int, folder: Path) -> Any:
    """Rank 1 is killed in its second save."""
    process = join_job(cpu=True)
    save_state(folder / "state", parts_of(1.0), process)
    if rank == 1:
        die_at(2)
    save_state(folder / "state", parts_of(2.0), process)


def main() -> None:
    torch.set_num_threads(1)  # what is forked must not have threads
    folder = Path(sys.argv[1])
    codes = start_ranks(one_of_two, 2, folder / "two", timeout=30)
    tell: dict[str, Callable[[], Any]] = {
        "over": lambda: everywhere(folder / "over", over=True),
        "new": lambda: everywhere(folder / "new", over=False),
        "writing": lambda: while_writing(folder / "writing"),
        "full": lambda: disk_full(folder / "full"),
        "two": lambda: {"codes": codes, "value": loaded(folder / "two" / "state", Naming())},
    }
    told = {name: action() for name, action in tell.items()}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
