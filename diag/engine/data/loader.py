"""The loader the training iterates: a DataLoader that knows where in the data it stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from diag.engine.data import seen
from diag.engine.data.epochs import Listeners
from diag.engine.data.moving import to_device
from diag.engine.data.progress import Progress
from diag.engine.data.reading import Source
from diag.engine.data.sharding import Step
from diag.errors import DiagError


class Observer(Protocol):
    """Who wants to know which loader is being iterated; passes may nest."""

    def loader_began(self, loader: PreparedLoader) -> None: ...
    def loader_ended(self, loader: PreparedLoader) -> None:
        """Also when the loop was left early."""


@dataclass
class _Course:
    """What all views of one loader share: where it stands."""

    progress: Progress
    step: Step | None = None


class PreparedLoader(DataLoader[Any]):
    """This rank's batches, on its device.

    It is a DataLoader to whoever asks; what it does not have itself it takes from the user's.
    Every iteration is a new epoch, also after a loop that was left early; `set_epoch` chooses
    another. Sizes are those of the batch last given, over all ranks without asking them.

    Args:
        loader: the user's.
        device: where batches go; None leaves them as they are read.
        non_blocking: copy them without waiting.
        skips: draws of the single process's stream that every pass leaves out.
    """

    def __init__(  # its state is the user's loader's: there is nothing for DataLoader to set up
        self,
        loader: DataLoader[Any],
        source: Source,
        rank: int,
        observer: Observer,
        device: torch.device | None,
        non_blocking: bool = False,
        skips: int = 0,
    ) -> None:
        self._loader = loader
        self._source = source
        self._rank = rank
        self._observer = observer
        self._non_blocking = non_blocking
        self._listeners = Listeners(*_parts(loader))
        self._course = _Course(Progress())
        self._skips = skips
        self.device = device
        reader = source.reader
        self.sampler = reader.sampler
        if reader.batch_sampler is not None:
            self.batch_sampler = reader.batch_sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # ends with its generator
        course, progress = self._course, self._course.progress
        chosen = self._listeners.set_by_user()
        if chosen is not None:
            progress.set_epoch(chosen)
        epoch, skip = progress.begin(self._skips)
        self._listeners.tell(epoch)
        self._observer.loader_began(self)
        try:
            with closing(self._source.deliveries(epoch, skip)) as steps:
                for step in steps:
                    progress.draws += self._source.share.draws_per_round
                    course.step = step
                    yield self._given(step)
            progress.complete()
        finally:
            course.step = None
            progress.end()
            self._observer.loader_ended(self)

    def _given(self, step: Step) -> Any:
        seen.handed(step.part, step.local)
        if self.device is None:
            return step.part
        return to_device(step.part, self.device, self._non_blocking)

    def __len__(self) -> int:
        """Batches this rank gets in an epoch. Raises TypeError where that is not known ahead."""
        return self._source.num_batches(self._rank, self._skips)

    @property
    def common_length(self) -> int:
        """Batches that every rank gets in an epoch.

        Raises:
            TypeError: not known ahead: what an iterable dataset says of its length may be wrong.
        """
        if not self._source.exact:
            raise TypeError("how many batches an iterable dataset gives is known at its end")
        last = self._source.share.num_ranks - 1  # no rank gets fewer
        return self._source.num_batches(last, self._skips)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    # -- the batch last given -----------------------------------------------------------

    @property
    def end_of_loader(self) -> bool:
        """Whether it is this rank's last one."""
        return self._course.step is not None and self._course.step.last

    @property
    def end_on_some_rank(self) -> bool:
        """Whether it is the last one of some rank; the same on all ranks.

        Ranks end at different batches with `even_batches=False` only.
        """
        return self._course.step is not None and self._course.step.last_somewhere

    @property
    def on_every_rank(self) -> bool:
        """Whether every rank has a batch in this step; if not, no collective may be part of it.

        False only at the end, with `even_batches=False`.
        """
        return self._course.step is None or self._course.step.everywhere

    @property
    def local_samples(self) -> int | None:
        """Samples in this rank's batch, repeated ones included; None if unknown."""
        return self._course.step.local if self._course.step is not None else None

    @property
    def global_samples(self) -> int | None:
        """Samples in all ranks' batches of this step; None if unknown."""
        return self._course.step.total if self._course.step is not None else None

    @property
    def remainder(self) -> int:
        """How many of `global_samples` do not repeat others, if some do; else -1.

        They are the first ones of the ranks' batches joined in the order of the ranks.
        """
        step = self._course.step
        if step is None or step.real is None or step.real == step.total:
            return -1
        return step.real

    @property
    def batches_yielded(self) -> int:
        """Batches given in this pass, or before it if it was taken up again."""
        draws = self._course.progress.draws - self._skips
        return max(0, draws) // self._source.share.draws_per_round

    # -- all of it ----------------------------------------------------------------------

    @property
    def total_batch_size(self) -> int | None:
        """Samples of a full step over all ranks; None if the loader names no batch size."""
        share = self._source.share
        if share.full is None:
            return None
        return share.full * share.draws_per_round * share.replicas

    @property
    def total_dataset_length(self) -> int:
        length = getattr(self.dataset, "total_length", None)
        return length if isinstance(length, int) else len(self.dataset)  # type: ignore[arg-type]

    @property
    def even_batches(self) -> bool:
        """Whether the last step is filled up. May be changed between passes."""
        return self._source.share.even

    @even_batches.setter
    def even_batches(self, even: bool) -> None:
        self._source.share = replace(self._source.share, even=even)

    # -- where it stands ----------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the pass under way or left early; else of the next one."""
        return self._course.progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch's. A pass that was to be taken up again in it still is."""
        self._course.progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, also in the middle of an epoch.

        The position counts what a single process would have drawn, so it holds for another
        number of ranks and another batch size too.
        """
        progress = self._course.progress
        return {
            "epoch": progress.epoch,
            "draws": progress.draws,
            "batch_size": self._source.share.full,
            "seed": self._source.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass begins where the saved one stood.

        Raises:
            DiagError: that is no state of a loader.
        """
        try:
            epoch, draws = int(state["epoch"]), int(state["draws"])
            saved, seed = state["batch_size"], state["seed"]
        except (KeyError, TypeError, ValueError) as error:
            raise DiagError(
                "not-a-loader-state",
                f"A loader's state has epoch, draws, batch_size and seed; this one does not "
                f"({type(error).__name__}: {error}).",
            ) from error
        full = self._source.share.full
        if saved and full:
            draws = draws * saved // full
        if self._source.seed is not None and seed is not None:
            self._source.seed = seed
        self._course.progress = Progress(epoch, draws)

    def skipping(self, num_batches: int) -> PreparedLoader:
        """A view of this loader whose passes begin `num_batches` later; both stand at one place."""
        view = copy.copy(self)
        view._skips += num_batches * self._source.share.draws_per_round
        return view


def _parts(loader: DataLoader[Any]) -> list[Any]:
    batch_sampler = loader.batch_sampler
    inner = [getattr(batch_sampler, name, None) for name in ("sampler", "batch_sampler")]
    return [batch_sampler, *inner, loader.sampler, loader.dataset]
