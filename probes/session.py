"""One rank's capture, from install to finish. Never raises into its host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diag.probes import current
from diag.probes.contain import Failures, log
from diag.record.schema import Phase

DATA, FORWARD = int(Phase.DATA), int(Phase.FORWARD)


@dataclass(frozen=True)
class ProbeConfig:
    """What the launcher tells a rank's probes.

    Attributes:
        directory: the rank's own directory of the run.
        device: "cpu" or "cuda".
        samples_per_step: samples of a whole step over all ranks, where the user said so.
        options: "without": capabilities to leave out, as if this torch lacked them.
    """

    directory: Path
    rank: int
    local_rank: int
    node: int
    world_size: int
    restart: int
    device: str
    max_bytes: int = 256 * 2**20
    samples_per_step: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """What `install` yields. Inert (every method returns at once) if it could not be built."""

    def __init__(self, config: ProbeConfig, failures: Failures) -> None:
        self.config = config
        self.failures = failures
        self.capture: Any = None

    @property
    def in_forward(self) -> bool:
        """Whether a forward is under way already: calls inside it are part of it."""
        return self.capture is not None and self.capture.tracker.timeline.stack[-1] == FORWARD

    def begin_forward(self, module: Any) -> int | None:
        return self.capture.begin_forward(module) if self.capture is not None else None

    def end_forward(self, depth: int) -> None:
        if self.capture is not None:
            self.capture.end_forward(depth)

    def samples(self, count: int) -> None:
        if self.capture is not None:
            self.capture.stated(count)

    def handed(self, batch: Any, samples: int | None) -> None:
        """A loader of the engine's gives the training a batch; None: its size is not known."""
        if self.capture is not None:
            self.capture.handed(batch, samples)

    def begin_data(self) -> int | None:
        """The training waits for data; the token closes it with `end_data`."""
        return self.capture.begin(DATA) if self.capture is not None else None

    def end_data(self, depth: int) -> None:
        if self.capture is not None:
            self.capture.end(depth)

    def span(self, name: str, began_ns: int, duration_ns: int) -> None:
        if self.capture is not None:
            self.capture.span(name, began_ns, duration_ns)

    def note(self, **facts: Any) -> None:
        """Facts for this rank's rank.json, known to whoever runs in it."""
        if self.capture is not None:
            self.capture.facts.update(facts)

    def checkpoint(self, name: str) -> AbstractContextManager[None]:
        """Flag the steps in which this is open as holding a checkpoint called `name`."""
        return self.capture.checkpoint(name) if self.capture is not None else nullcontext()

    def finish(self, ended: str, error: dict[str, Any] | None = None) -> None:
        """Take every seam out and complete the record. Idempotent."""
        capture, self.capture = self.capture, None
        if current.session is self:
            current.session = None
        if capture is not None:
            self.failures.contained("finish", capture.finish)(ended, error)


def install(config: ProbeConfig) -> Session:
    """Put the probes into this process. Whatever fails, the training can go on."""
    failures = Failures()
    session = Session(config, failures)
    try:
        from diag.probes.capture import Capture

        if current.session is not None:
            current.session.finish("replaced")
        session.capture = Capture(config, failures)
        current.session = session
        session.capture.start()
    except Exception as error:
        failures.note("install", error)
        log.warning("diag could not install its probes: %s", error)
        session.finish("not-installed")
    return session


def identity(config: ProbeConfig) -> dict[str, Any]:
    """The facts known before the script runs."""
    return {
        "rank": config.rank,
        "local_rank": config.local_rank,
        "node": config.node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "restart": config.restart,
        "ready_ns": time.monotonic_ns(),
    }
