"""Engine's options about loaders, by the names Accelerate has for them."""

from __future__ import annotations

from dataclasses import replace

from diag.engine.options import DataOptions


class DataSurface:
    """See `DataOptions`."""

    data_options: DataOptions

    @property
    def split_batches(self) -> bool:
        """Whether a loader's batch is the whole job's."""
        return self.data_options.split_batches

    @property
    def dispatch_batches(self) -> bool | None:
        """Whether rank 0 alone reads; None: for iterable datasets."""
        return self.data_options.dispatch_batches

    @property
    def even_batches(self) -> bool:
        """Whether the last batches are filled up; a change holds for loaders prepared after it."""
        return self.data_options.even_batches

    @even_batches.setter
    def even_batches(self, even: bool) -> None:
        self.data_options = replace(self.data_options, even_batches=even)

    @property
    def use_seedable_sampler(self) -> bool:
        """Whether a shuffle has the same order for every number of ranks."""
        return self.data_options.use_seedable_sampler

    @property
    def non_blocking(self) -> bool:
        """Whether batches are copied to the device without waiting."""
        return self.data_options.non_blocking
