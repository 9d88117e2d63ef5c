"""What a loss must be, how much it weighs, and a word when it is not a number any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diag.engine import gradients, wire
from diag.engine.accumulation import Position, Window, power_of_two, share
from diag.engine.logs import get_logger
from diag.engine.process import Process
from diag.errors import DiagError, UsageError

OnNonfinite = Literal["warn", "raise", "ignore"]

_logger = get_logger(__name__)


def check_loss(loss: object, backward_options: dict[str, Any]) -> Tensor:
    """The loss, if torch can take its gradient.

    Raises:
        DiagError: no tensor, not one number, or no trainable parameter went into it.
    """
    if not isinstance(loss, Tensor):
        raise DiagError(
            "loss-not-a-tensor",
            f"backward takes the loss as a tensor, not a {type(loss).__name__}.",
            "Pass it before .item() or float().",
        )
    if loss.numel() != 1 and backward_options.get("gradient") is None:
        raise DiagError(
            "loss-not-scalar",
            f"backward takes one number; this loss has shape {list(loss.shape)}.",
            "loss.mean(); or loss.sum() with backward(loss, num_items=…).",
        )
    if not loss.requires_grad:
        raise DiagError(
            "loss-without-gradient",
            "The loss depends on no trainable parameter, so there is nothing to train.",
            "Is it computed under torch.no_grad(), detached, or are all parameters frozen "
            "(requires_grad=False)?",
        )
    return loss


def weigh_mean(loss: Tensor, window: Window, position: Position | None, process: Process) -> Tensor:
    """A mean loss as its part of the window's, over all ranks: see `Window` and `share`."""
    _keep_kind(window, summed=False)
    factor = share(position, process.world_size)
    if factor != 1.0:
        loss = loss * factor
    return loss if window.divisor == 1 else loss / window.divisor


def weigh_sum(
    loss: Tensor, num_items: Tensor | float, window: Window, process: Process, careful: bool
) -> Tensor:
    """A loss summed over `num_items` items as its part of the mean over all items of all ranks.

    Alone in its window it is divided by the items of all ranks. Otherwise their number is known
    only at the window's end: `settle` divides. Collective in the first case and if `careful`.

    Args:
        careful: divide every loss of the window beforehand by about the window's items, one
            power of two on all ranks, lest float16 overflow.
    """
    ranks = process.world_size
    items = torch.as_tensor(num_items, dtype=torch.float64, device=loss.device).detach()
    if window.stands_alone:
        return loss * (ranks / _at_least_one(_over_ranks(process, items))).to(loss.dtype)
    _keep_kind(window, summed=True)
    if careful and window.items is None:
        window.unit = power_of_two(_over_ranks(process, items) * window.planned)
    window.count_items(items)
    if isinstance(window.unit, Tensor):
        return loss * (ranks / window.unit).to(loss.dtype)
    return loss * ranks if ranks > 1 else loss


def settle(window: Window, parameters: Iterable[Tensor], process: Process) -> None:
    """Give the gradients of a complete window their final scale. Collective for sums."""
    factor: Tensor | float = window.correction
    if window.items is not None:
        factor = window.unit / _at_least_one(_over_ranks(process, window.items))
    window.settled = True
    if isinstance(factor, Tensor) or factor != 1.0:
        gradients.scale_(parameters, factor)


def _keep_kind(window: Window, summed: bool) -> None:
    if window.held and window.summed not in (None, summed):
        raise DiagError(
            "mixed-losses",
            "One accumulation window holds losses with and without num_items: "
            "they cannot be weighed against each other.",
            "Give num_items to every backward of the window or to none.",
        )
    window.summed = summed


def _over_ranks(process: Process, value: Tensor) -> Tensor:
    return wire.reduce(process, value, "sum") if process.distributed else value


def _at_least_one(items: Tensor) -> Tensor:
    return items.clamp(min=1)  # a batch of nothing but padding has no gradient, not a NaN


class LossWatch:
    """Says once, on the rank where it happens, that the loss is no finite number.

    It never waits for a GPU: there the answer is looked at one backward later.
    """

    def __init__(self, on_nonfinite: OnNonfinite) -> None:
        if on_nonfinite not in get_args(OnNonfinite):
            raise UsageError(
                "unknown-option",
                f"on_nonfinite_loss={on_nonfinite!r} is not one of {get_args(OnNonfinite)}.",
            )
        self._action = on_nonfinite
        self._pending: tuple[Tensor, torch.cuda.Event, int] | None = None

    def look(self, loss: Tensor, rank: int, step: int) -> None:
        """Args: step: optimizer steps taken before this loss."""
        if self._action == "ignore":
            return
        if loss.device.type != "cuda":
            if not bool(torch.isfinite(loss.detach()).all()):
                self._tell(str(loss.item()), rank, step)
            return
        self._look_back(rank)
        if self._pending is None:
            value = loss.detach().sum().to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._pending = value, event, step

    def _look_back(self, rank: int) -> None:
        if self._pending is None or not self._pending[1].query():  # type: ignore[no-untyped-call]
            return
        value, _, step = self._pending
        self._pending = None
        if not bool(torch.isfinite(value)):
            self._tell(str(value.item()), rank, step)

    def _tell(self, value: str, rank: int, step: int) -> None:
        what = f"The loss is {value} on rank {rank} after {step} optimizer steps."
        if self._action == "raise":
            raise DiagError(
                "loss-not-finite", what, "Look at that rank's batch and the learning rate."
            )
        self._action = "ignore"  # once is enough
        _logger.warning(
            f"{what} Its gradients reach every rank. Training goes on; "
            'Engine(on_nonfinite_loss="raise") stops it here.',
            main_process_only=False,
        )
