"""Engine's members about the ranks: who this is, who does what, who waits for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar, overload

import torch

from diag.engine import control
from diag.engine.process import Process

P = ParamSpec("P")
R = TypeVar("R")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class ProcessSurface:
    """See `diag.engine.control` and `diag.engine.process`."""

    process: Process
    _trigger: control.Trigger

    @property
    def device(self) -> torch.device:
        """Where this rank's model and batches live."""
        return self.process.device

    @property
    def num_processes(self) -> int:
        """How many ranks there are."""
        return self.process.world_size

    @property
    def process_index(self) -> int:
        """This rank's number over all nodes."""
        return self.process.rank

    @property
    def local_process_index(self) -> int:
        """This rank's number on its node."""
        return self.process.local_rank

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.process.is_main

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.process.is_local_main

    @property
    def is_last_process(self) -> bool:
        """Whether this is the last rank."""
        return self.process.is_last

    @property
    def use_distributed(self) -> bool:
        """Whether there are several ranks."""
        return self.process.distributed

    def print(self, *args: Any, **kwargs: Any) -> None:
        """The built-in `print`, once per node."""
        control.print(self.process, *args, **kwargs)

    def wait_for_everyone(self) -> None:
        """Return when every rank has come here."""
        control.wait_for_everyone(self.process)

    def main_process_first(self) -> AbstractContextManager[None]:
        """Rank 0 goes through the block, then all others."""
        return control.main_process_first(self.process)

    def local_main_process_first(self) -> AbstractContextManager[None]:
        """Each node's first rank goes through the block, then all others."""
        return control.local_main_process_first(self.process)

    def on_main_process(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """A decorator: the function runs on rank 0 alone."""
        return control.on_main_process(self.process, function)

    def on_local_main_process(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """A decorator: the function runs on each node's first rank."""
        return control.on_local_main_process(self.process, function)

    def on_last_process(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """A decorator: the function runs on the last rank."""
        return control.on_last_process(self.process, function)

    @overload
    def on_process(
        self, function: Callable[P, R], process_index: int = 0
    ) -> Callable[P, R | None]: ...
    @overload
    def on_process(self, function: None = None, process_index: int = 0) -> Decorator: ...
    def on_process(
        self, function: Callable[..., Any] | None = None, process_index: int = 0
    ) -> Callable[..., Any]:
        """A decorator, bare or with its argument: the function runs on rank `process_index`."""
        if function is None:
            return lambda wrapped: control.on_process(self.process, wrapped, process_index)
        return control.on_process(self.process, function, process_index)

    @overload
    def on_local_process(
        self, function: Callable[P, R], local_process_index: int = 0
    ) -> Callable[P, R | None]: ...
    @overload
    def on_local_process(
        self, function: None = None, local_process_index: int = 0
    ) -> Decorator: ...
    def on_local_process(
        self, function: Callable[..., Any] | None = None, local_process_index: int = 0
    ) -> Callable[..., Any]:
        """As `on_process`, for rank `local_process_index` of each node."""
        if function is None:
            return lambda wrapped: control.on_local_process(
                self.process, wrapped, local_process_index
            )
        return control.on_local_process(self.process, function, local_process_index)

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """This rank's part of a list, tuple, tensor, or dict of them.

        Args:
            apply_padding: repeat the last element so that all ranks have equally many.
        """
        yield control.split_between_processes(self.process, inputs, apply_padding)

    def set_trigger(self) -> None:
        """Raise a flag on this rank for all ranks' next `check_trigger`."""
        self._trigger.set()

    def check_trigger(self) -> bool:
        """Whether any rank called `set_trigger` since the last check. Collective; lowers the flag."""
        return self._trigger.check(self.process)
