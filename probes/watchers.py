"""What else a step holds: samples, evaluation, checkpoints, garbage collection."""

from __future__ import annotations

import functools
import gc
import json
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from diag.probes.contain import Failures
from diag.probes.roots import wrapped
from diag.probes.samples import LoaderSizes, agreed_lead, batch_samples, batch_tokens
from diag.probes.tracker import DATA, Tracker
from diag.record.schema import StepFlag

GC_PAUSE_NS = 1_000_000  # shorter pauses are noise, and there are many of them
Function = Callable[..., Any]


class EventSink(Protocol):
    def append_event(self, row: tuple[object, ...], /) -> None: ...


class Watchers:
    """Observers beside the phases. Each method is called from a seam and contained there.

    Args:
        per_step: samples this rank trains on per step, if the user said so.
    """

    def __init__(
        self, tracker: Tracker, sink: EventSink, failures: Failures, per_step: int | None
    ) -> None:
        self.tracker = tracker
        self.sink = sink
        self.failures = failures
        self.per_step = per_step
        self.samples_source = "stated" if per_step is not None else "loader"
        self.samples_problem: str | None = None
        self.optimizer_steps = 0
        self._sizes: weakref.WeakKeyDictionary[Any, LoaderSizes] = weakref.WeakKeyDictionary()
        self._trained: weakref.WeakSet[Any] = weakref.WeakSet()
        self._evaluating_since: int | None = None
        self._gc_started = 0
        self._checkpoints_open = 0
        self._checkpoint_began = failures.contained("checkpoint", self._begin_checkpoint)
        self._checkpoint_ended = failures.contained("checkpoint", self._end_checkpoint)

    def event(self, kind: str, started_ns: int, duration_ns: int, **detail: object) -> None:
        row = (started_ns, duration_ns, self.tracker.steps, kind, json.dumps(detail))
        self.sink.append_event(row)

    # -- samples ------------------------------------------------------------------------

    def loader_opening(self, loader: Any) -> None:
        """A persistent iterator is taken up again: what it drew and never delivered is void."""
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None and iterator in self._sizes:
            self._sizes[iterator].drawn.clear()

    def loader_opened(self, loader: Any, iterator: Any) -> None:
        """A pass over a loader begins."""
        if not self.tracker.here():
            return
        nominal = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        sizes = self._sizes_of(iterator)
        sizes.nominal = nominal if isinstance(nominal, int) else None
        sizes.handed_over = getattr(loader, "diag_hands_over", False) is True
        self.event("epoch", time.monotonic_ns(), 0, loader=type(loader).__name__)

    def drew(self, iterator: Any, index: Any) -> None:
        """A loader drew the indices of a batch that it delivers later, in this order."""
        counted = self.per_step is None and getattr(iterator, "_dataset_kind", 0) == 0
        if self.tracker.armed and counted and isinstance(index, (list, tuple)):
            self._sizes_of(iterator).drawn.append(len(index))

    def delivered(self, iterator: Any, batch: Any) -> None:
        """The training was handed a batch."""
        sizes = self._sizes_of(iterator)
        if sizes.handed_over:  # counted when the training takes it, which may be a step later
            sizes.drawn.clear()
        elif self._counts():
            iterable = getattr(iterator, "_dataset_kind", 0) != 0
            self._count(batch, batch_samples(batch, sizes, iterable))

    def handed(self, batch: Any, samples: int | None) -> None:
        """The engine gives the training a batch of so many samples; None: look for yourself."""
        if self._counts():
            self._count(batch, agreed_lead(batch, at_least=2) if samples is None else samples)

    def _counts(self) -> bool:
        """Whether batches are counted now: not where the user says how many samples there are."""
        draft = self.tracker.draft
        if not self.tracker.here() or draft.stated:
            return False
        if self.per_step is not None:
            draft.samples = self.per_step
        return self.per_step is None

    def _count(self, batch: Any, samples: int | None) -> None:
        draft = self.tracker.draft
        if samples is None:
            draft.samples = None
            self.samples_problem = "the loader has no batch size and the batch's tensors do not share a leading dimension"
        elif draft.samples is not None:
            draft.samples += samples
        tokens = batch_tokens(batch)
        if tokens is not None:
            draft.tokens = (draft.tokens or 0) + tokens

    def _sizes_of(self, iterator: Any) -> LoaderSizes:
        sizes = self._sizes.get(iterator)
        if sizes is None:
            sizes = self._sizes[iterator] = LoaderSizes()
        return sizes

    def stated(self, samples: int) -> None:
        """`diag.samples(n)`: the user's word, which outranks the loader."""
        draft = self.tracker.draft
        self.samples_source = "stated"
        if not draft.stated:
            draft.samples, draft.stated = 0, True
        draft.samples = (draft.samples or 0) + samples

    # -- optimizer ----------------------------------------------------------------------

    def optimizer_stepped(self) -> None:
        self.optimizer_steps += 1

    def scaler_stepped(self, steps_before: int) -> None:
        """A loss scaler came back: if no optimizer stepped, it skipped this update."""
        if self.optimizer_steps == steps_before:
            self.tracker.flag(StepFlag.SKIPPED)

    # -- what the script or the engine says ---------------------------------------------

    def span(self, name: str, began_ns: int, duration_ns: int) -> None:
        """A part of the step the user named is over."""
        if self.tracker.armed:
            self.event("span", began_ns, duration_ns, name=name)

    # -- evaluation and checkpoints -----------------------------------------------------

    def forward_called(self, module: Any, training: bool) -> None:
        """A root module is called; `training` is False for a forward in eval mode.

        Only what has been trained can be evaluated: a teacher of the same class cannot.
        """
        if training:
            if module not in self._trained:
                self._trained.add(module)
                self._trained.update(wrapped([module]))
            if self._evaluating_since is not None:
                self.evaluation_ended(time.monotonic_ns())
            return
        if module not in self._trained:
            return
        now = time.monotonic_ns()
        self.tracker.flag(StepFlag.EVALUATION)
        if self._evaluating_since is None:
            self._evaluating_since = now

    def evaluation_ended(self, now: int) -> None:
        if self._evaluating_since is not None:
            self.event("evaluation", self._evaluating_since, now - self._evaluating_since)
            self._evaluating_since = None

    def checkpointing(self, original: Function) -> Function:
        """Wrap a function that saves or loads: its step is flagged, its time an event."""
        name = getattr(original, "__name__", "checkpoint")

        @functools.wraps(original)
        def checkpoint(*args: Any, **kwargs: Any) -> Any:
            with self.checkpoint(name):
                return original(*args, **kwargs)

        return checkpoint

    @contextmanager
    def checkpoint(self, name: str) -> Iterator[None]:
        """What runs in here saves or loads. One within another is the outer one's."""
        began = None if self._checkpoints_open else self._checkpoint_began()
        self._checkpoints_open += 1
        try:
            yield
        finally:
            self._checkpoints_open -= 1
            if began is not None:
                self._checkpoint_ended(began, name)

    def _begin_checkpoint(self) -> int | None:
        # What a dataset loads while it is asked for data is data.
        if not self.tracker.here() or self.tracker.timeline.phase == DATA:
            return None
        self.tracker.flag(StepFlag.CHECKPOINT)
        return time.monotonic_ns()

    def _end_checkpoint(self, started: int, name: str) -> None:
        # Again: what saves may itself have stepped past a cut (a distributed save waits).
        self.tracker.flag(StepFlag.CHECKPOINT)
        site = self.tracker.traffic.site()
        self.event("checkpoint", started, time.monotonic_ns() - started, function=name, site=site)

    # -- garbage collection -------------------------------------------------------------

    def gc_callback(self, phase: str, info: dict[str, int]) -> None:
        """A callback of gc.callbacks; it may run on any thread, and must never raise."""
        if phase == "start":
            self._gc_started = time.monotonic_ns()
            return
        pause = time.monotonic_ns() - self._gc_started
        if self.tracker.armed and pause >= GC_PAUSE_NS:
            self.event("gc", self._gc_started, pause, generation=info.get("generation", -1))

    def watch_gc(self) -> Callable[[], None]:
        callback = self.gc_callback
        gc.callbacks.append(callback)
        return lambda: gc.callbacks.remove(callback)
