"""What every kind of source has in common: a copy of the user's loader that reads for it."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

from torch.utils.data import DataLoader

from diag.engine.data.randomness import preserved
from diag.engine.data.sharding import Share, Step
from diag.errors import DiagError


class Source(Protocol):
    """Where a rank's batches come from.

    Attributes:
        share: how the single process's stream is divided.
        seed: what random draws depend on, with the epoch; None where nothing is drawn.
        exact: the number of batches is certain, where it is known.
    """

    share: Share
    seed: int | None

    @property
    def exact(self) -> bool: ...

    @property
    def reader(self) -> DataLoader[Any]:
        """The loader that reads."""

    def deliveries(self, epoch: int, skip: int) -> Generator[Step, None, None]:
        """One pass: this rank's batches, each as a step's part.

        Args:
            skip: draws of the single process's stream to begin after.
        """

    def num_batches(self, rank: int, skip: int = 0) -> int:
        """How many a pass delivers to a rank. Raises TypeError where that is not known ahead."""


def check_is_loader(loader: object) -> None:
    """Raises DiagError for what is no DataLoader."""
    if not isinstance(loader, DataLoader):
        raise DiagError(
            "not-a-loader",
            f"A torch DataLoader is wanted here, not a {type(loader).__name__}.",
            "torch.utils.data.DataLoader(dataset, batch_size=…).",
        )


def copied(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A shallow copy: a user's subclass and its attributes stay, and so does the user's loader."""
    twin = copy.copy(loader)
    # Past __setattr__: torch forbids to replace a sampler, which is what this is for.
    vars(twin).update(changes, _iterator=None)
    return twin


def opened(reader: DataLoader[Any], resumes: bool) -> Iterator[Any]:
    """A pass over `reader`.

    A pass that is taken up again draws nothing from the training's generators: the uninterrupted
    one had drawn its workers' seed long before.
    """
    with preserved(reader.generator) if resumes else nullcontext():
        return iter(reader)
