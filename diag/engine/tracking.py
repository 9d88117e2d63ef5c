"""Metrics over a run: one JSON object per line, or whatever tracker the user brings."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from diag.engine.process import Process
from diag.errors import DiagError


@runtime_checkable
class Tracker(Protocol):
    """What a tracker has to do; Accelerate's `GeneralTracker` subclasses do.

    With an attribute `main_process_only = False` it is called on every rank, else on rank 0.
    A method `start()` is called first, if it has one.
    """

    name: str

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None: ...
    def finish(self) -> None: ...


class JsonlTracker:
    """Appends to one file: `{"time": s, "config": {…}}` per start, `{"time", "step", "values"}` per log.

    Strict JSON: a value that is not finite becomes null. A line is written whole or, if the
    machine stops there, torn: the next one starts on a line of its own and `read_jsonl` skips it.

    Args:
        path: the file; its folder is made.
    """

    name = "jsonl"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def start(self) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _end_torn_line(self._file)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._append({"time": time.time(), "config": values})

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._append({"time": time.time(), "step": step, "values": values, **kwargs})

    def finish(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        self.start()
        assert self._file is not None
        text = json.dumps(plain(line), allow_nan=False, ensure_ascii=False)
        # One write: another process's line, or a kill, cannot come in between.
        os.write(self._file, f"{text}\n".encode())


class Elsewhere:
    """A tracker that another rank runs: here its calls do nothing, so that no `if` is needed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None: ...
    def finish(self) -> None: ...


class Trackers:
    """The trackers of a run, each called on the ranks it wants."""

    def __init__(self, process: Process, trackers: Sequence[Tracker]) -> None:
        self._names = [tracker.name for tracker in trackers]
        self._here = [
            tracker
            for tracker in trackers
            if process.is_main or not getattr(tracker, "main_process_only", True)
        ]

    def start(self, config: Mapping[str, Any] | None = None) -> None:
        for tracker in self._here:
            start = getattr(tracker, "start", None)
            if start is not None:
                start()
            if config is not None:
                tracker.store_init_configuration(dict(config))

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        log_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Args: log_kwargs: by tracker name, further arguments of its `log`."""
        for tracker in self._here:
            extra = (log_kwargs or {}).get(tracker.name, {})
            tracker.log(dict(values), step=step, **extra)

    def get(self, name: str) -> Tracker:
        """The tracker `name`; on ranks that do not run it one that does nothing.

        Raises:
            DiagError: there is none of that name.
        """
        if name not in self._names:
            raise DiagError(
                "no-such-tracker",
                f"There is no tracker {name!r}; there is {', '.join(map(repr, self._names))}.",
            )
        return next((one for one in self._here if one.name == name), Elsewhere(name))

    def finish(self) -> None:
        for tracker in self._here:
            tracker.finish()


def choose_trackers(log_with: Any, directory: Path, project_name: str) -> list[Tracker]:
    """What `Engine(log_with=…)` names, as objects.

    Args:
        log_with: None or "jsonl" for `directory/project_name.jsonl`; a `Tracker`; a list of them.

    Raises:
        DiagError: the name of a tracker diag does not bring.
    """
    wanted = log_with if isinstance(log_with, (list, tuple)) else [log_with]
    return [_choose(one, directory / f"{project_name}.jsonl") for one in wanted]


def _choose(wanted: Any, path: Path) -> Tracker:
    if wanted is None or wanted == "jsonl":
        return JsonlTracker(path)
    if isinstance(wanted, type):
        raise DiagError(
            "unknown-tracker",
            f"log_with={wanted.__name__}: a tracker is an object, and this is its class.",
            f"log_with={wanted.__name__}(), with whatever it takes.",
        )
    if isinstance(wanted, Tracker):
        return wanted
    raise DiagError(
        "unknown-tracker",
        f"log_with={wanted!r}: diag brings one tracker, 'jsonl'.",
        "For another pass an object with `name`, `store_init_configuration(values)`, "
        "`log(values, step=None)` and `finish()`; four lines around wandb or TensorBoard.",
    )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The lines a `JsonlTracker` wrote, without torn ones."""
    for line in path.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def plain(value: Any) -> Any:
    """`value` in what JSON has; tensors and arrays as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if isinstance(value, Tensor):
        return plain(value.detach().tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _end_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")
