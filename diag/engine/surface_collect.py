"""Engine's collectives over nested tensors and Python objects."""

from __future__ import annotations

from typing import Any

from diag.engine import collect
from diag.engine.metrics import Loader
from diag.engine.process import Process


class CollectSurface:
    """See `diag.engine.collect`."""

    process: Process
    check_shapes: bool

    @property
    def active_loader(self) -> Loader | None:
        raise NotImplementedError

    def gather(self, tensor: Any) -> Any:
        """Every rank's tensors, joined along the first dimension in the order of the ranks."""
        return collect.gather(self.process, tensor, check=self.check_shapes)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """As `gather`, without what the last batch repeats to fill up: each sample counts once."""
        return collect.gather_for_metrics(
            self.process, input_data, self.active_loader, use_gather_object
        )

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """The ranks' tensors, element by element: "sum", "mean", "max", "min"; times `scale`."""
        return collect.reduce(self.process, tensor, reduction, scale, check=self.check_shapes)

    def pad_across_processes(
        self, tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
    ) -> Any:
        """Tensors as long along `dim` as the longest rank's, filled with `pad_index`."""
        return collect.pad_across_processes(self.process, tensor, dim, pad_index, pad_first)

    def broadcast(self, tensor: Any, from_process: int = 0) -> Any:
        """Rank `from_process`'s values in every rank's tensors, in place."""
        return collect.broadcast(self.process, tensor, from_process, check=self.check_shapes)

    def gather_object(self, value: Any) -> list[Any]:
        """Every rank's Python values in one list; lists are joined."""
        return collect.gather_object(self.process, value)

    def broadcast_object_list(self, values: list[Any], from_process: int = 0) -> list[Any]:
        """Overwrite `values` with rank `from_process`'s."""
        return collect.broadcast_object_list(self.process, values, from_process)
