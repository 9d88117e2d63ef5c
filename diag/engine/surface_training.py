"""Engine's members of the training loop: accumulation, backward, uneven ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diag.engine import losses, precision, torch_private, uneven
from diag.engine.accumulation import Window
from diag.engine.checkpoint import Stateful
from diag.engine.logs import get_logger
from diag.engine.models import Models
from diag.engine.optimizer import StepGate, gate_of
from diag.engine.options import DataOptions, Precision
from diag.engine.placement import ddp_of
from diag.engine.process import Process
from diag.engine.surface_gradients import GradientSurface
from diag.errors import DiagError, UsageError

_logger = get_logger(__name__)


class TrainingSurface(GradientSurface):
    """See `diag.engine.accumulation`, `losses`, `uneven`."""

    process: Process
    data_options: DataOptions
    _models: Models
    _optimizers: list[Optimizer]
    _schedulers: list[LRScheduler]
    _loaders: list[Any]

    def _init_training(
        self,
        steps: int,
        sync_with_dataloader: bool,
        sync_each_batch: bool,
        mode: Precision,
        scaler_options: Mapping[str, Any],
        on_nonfinite_loss: losses.OnNonfinite,
    ) -> None:
        self._steps = _checked_steps(steps)
        self._sync_with_dataloader = sync_with_dataloader
        self._sync_each_batch = sync_each_batch
        self._precision = mode
        self._scale = (
            precision.LossScale(self.process.device, **scaler_options) if mode == "fp16" else None
        )
        self._watch = losses.LossWatch(on_nonfinite_loss)
        self._active: list[Any] = []
        self._muted: dict[int, int] = {}
        self._joining = False
        self._steps_before = 0
        self._forget_windows()

    def _forget_windows(self) -> None:
        self._windows: dict[frozenset[int], Window] = {}
        self._window = self._new_window()
        self._window_models: Sequence[nn.Module] = ()
        self._checked_parameters = False

    def _new_window(self) -> Window:
        return Window(self._steps, self._sync_with_dataloader)

    # -- state --------------------------------------------------------------------------

    @property
    def sync_gradients(self) -> bool:
        """Whether the current micro-batch's gradients go to all ranks, and the optimizer acts."""
        return self._window.synchronizes

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of a full window; a change holds from the next window."""
        return self._steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int) -> None:
        self._steps = _checked_steps(steps)
        for window in (self._window, *self._windows.values()):
            window.steps = steps

    @property
    def strategy(self) -> str:
        """ "ddp", "fsdp", "none" in a single process, or "auto" before the first model came."""
        return self._models.strategy

    @property
    def why_strategy(self) -> str:
        """What "auto" went by; "" if it did not choose."""
        return self._models.why

    @property
    def completed_steps(self) -> int:
        """Steps the busiest optimizer has taken, those before a loaded checkpoint included."""
        return self._steps_before + max((gate.taken for gate in self._gates()), default=0)

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether an optimizer left out its last step because a gradient overflowed."""
        return any(gate.step_was_skipped for gate in self._gates())

    @property
    def active_loader(self) -> Any:
        """The innermost prepared loader that is being iterated; None outside."""
        return self._active[-1] if self._active else None

    def loader_began(self, loader: Any) -> None:
        """A prepared loader says that it is being iterated."""
        self._active.append(loader)

    def loader_ended(self, loader: Any) -> None:
        """A prepared loader says that its iteration is over, or was left."""
        for index in reversed(range(len(self._active))):
            if self._active[index] is loader:
                del self._active[index]
                return

    def _resume_at(self, step: int) -> None:
        """After a checkpoint was loaded that was saved `step` steps into the training."""
        self._steps_before += step - self.completed_steps
        self._forget_windows()

    def _gates(self) -> list[StepGate]:
        return [gate for one in self._optimizers if (gate := gate_of(one)) is not None]

    # -- accumulation -------------------------------------------------------------------

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """One micro-batch of an accumulation window: its forward, backward and step go inside.

        Each set of models has a window of its own, so a generator and a discriminator may each
        accumulate by itself.

        Args:
            models: those trained in the block; none: all that were prepared.
        """
        self._enter_window(models)
        with ExitStack() as stack:
            if not (self._window.synchronizes or self._sync_each_batch):
                for model in self._window_models:
                    stack.enter_context(self.no_sync(model))
            yield

    def _before_forward(self, model: nn.Module) -> None:
        # An evaluation needs the other ranks only where they hold a part of the model.
        if not self._joining and (model.training or self.strategy == "fsdp"):
            uneven.check_all_have_a_batch(self.active_loader, self.process)

    def _enter_window(self, models: Sequence[nn.Module]) -> None:
        key = frozenset(map(id, models))
        self._window = self._windows.setdefault(key, self._new_window())
        self._window_models = models or self._models.trained()
        self._window.begin_micro_batch(self.active_loader)

    def _window_parameters(self) -> list[Tensor]:
        """Those of the window's models, and what none but their optimizers hold (a temperature)."""
        own = {id(p): p for model in self._window_models for p in model.parameters()}
        known = {id(p) for p in self._models.parameters()}
        for optimizer in self._optimizers:
            held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
            if held.keys() & own.keys():
                own |= {key: p for key, p in held.items() if key not in known}
        return list(own.values())

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Gradients of forwards in the block stay on their ranks and add up; the next backward sends all."""
        self._muted[id(model)] = self._muted.get(id(model), 0) + 1
        self._models.set_sync(model, on=False)
        try:
            yield
        finally:
            self._muted[id(model)] -= 1
            if not self._muted[id(model)]:
                self._models.set_sync(model, on=True)

    @contextmanager
    def trigger_sync_in_backward(self, model: nn.Module) -> Iterator[None]:
        """Synchronize in the block's backward, though the forwards ran in `no_sync`."""
        ddp = ddp_of(model)
        if ddp is not None:
            torch_private.synchronize_next_backward(ddp)
        yield

    # -- backward -----------------------------------------------------------------------

    def backward(
        self, loss: Tensor, num_items: Tensor | float | None = None, **options: Any
    ) -> None:
        """The gradients of `loss` as one process would have them, over all ranks and micro-batches.

        Without `num_items` the loss is a mean over the micro-batch. It weighs 1/k in a window of
        k micro-batches, at a loader's end of as many as there are; ranks with fewer samples
        weigh less.

        Args:
            num_items: the loss is a sum over so many items (tokens, say) of this rank; the
                gradients are divided by the items of all ranks and the whole window.
            options: of `Tensor.backward`.

        Raises:
            DiagError: the loss is no single number, or nothing trainable went into it.
        """
        loss = losses.check_loss(loss, options)
        self._watch.look(loss, self.process.rank, self.completed_steps)
        loss = self._weigh(loss, num_items)
        (loss if self._scale is None else self._scale.scale(loss)).backward(**options)  # type: ignore[no-untyped-call]
        window = self._window
        window.collected()
        if window.held and window.synchronizes and not window.settled:
            losses.settle(window, self._window_parameters(), self.process)
        self._check_parameters()  # now: in the midst of a step FSDP holds other ones

    def _weigh(self, loss: Tensor, num_items: Tensor | float | None) -> Tensor:
        if self._window.settled and self._window.correction != 1:
            self._check_tail()
        if num_items is None:
            return losses.weigh_mean(loss, self._window, self.active_loader, self.process)
        if self._joining:
            raise DiagError(
                "items-while-joining",
                "backward(num_items=…) inside join_uneven_inputs: a rank that has left cannot "
                "take part in the count.",
                "Give every rank the same number of batches (even_batches=True), or use a mean loss.",
            )
        careful = self._scale is not None
        return losses.weigh_sum(loss, num_items, self._window, self.process, careful)

    def _check_tail(self) -> None:
        # A first backward has given the window its final scale. What FSDP keeps aside of the
        # other models until their own backward has not got it.
        if self.strategy == "fsdp" and len(self._window_models) > 1:
            raise DiagError(
                "tail-in-two-backwards",
                f"A loader without a known length ended {self._window.held} micro-batches into a "
                f"window of {self._window.planned} that {len(self._window_models)} sharded models "
                "share, and they have a backward each: it cannot be weighed any more.",
                "Give each model its own `with engine.accumulate(model)`, or the dataset a length.",
            )

    def _check_parameters(self) -> None:
        """Say once what is trained and not synchronized: all of it, or parameters of an optimizer."""
        if self._checked_parameters or not self.process.distributed:
            return
        self._checked_parameters = True
        known = {id(p) for p in self._models.parameters()}
        if not known:
            _logger.warning(
                f"No model was prepared, so each of the {self.process.world_size} ranks trains one "
                "of its own. Give it to engine.prepare before the training."
            )
        for optimizer in self._optimizers:
            strays = [p for g in optimizer.param_groups for p in g["params"] if id(p) not in known]
            if strays:
                _logger.warning(
                    f"{type(optimizer).__name__} holds {len(strays)} parameter(s) of no prepared "
                    f"model, the first of shape {list(strays[0].shape)}: their gradients stay on "
                    "each rank and the ranks drift apart. Put them into a model and prepare it."
                )

    # -- uneven inputs -------------------------------------------------------------------

    @contextmanager
    def join_uneven_inputs(
        self, joinables: Iterable[Any], even_batches: bool | None = None
    ) -> Iterator[None]:
        """Train while ranks run out of batches at different times; see `uneven.join`. Collective.

        Args:
            joinables: the models trained in the block.
            even_batches: for the block, instead of the engine's; True: nothing needs joining.
        """
        even = self.data_options.even_batches if even_batches is None else even_batches
        joins = self.process.distributed and not even
        joined = uneven.join(self.process, joinables, enable=joins)
        with uneven.even_batches(self._loaders, even), joined:
            self._joining = joins
            try:
                yield
            finally:
                self._joining = False
        if joins:
            self._catch_up()

    def _catch_up(self) -> None:
        if self._scale is not None:
            self._scale.settle()
        others: list[Stateful] = [*self._schedulers]
        if self.scaler is not None:
            others.append(self.scaler)
        taken = uneven.catch_up(self.process, self.completed_steps, self._optimizers, others)
        self._steps_before += taken - self.completed_steps


def _checked_steps(steps: int) -> int:
    if steps < 1:
        raise UsageError(
            "bad-accumulation-steps",
            f"gradient_accumulation_steps={steps}: a window holds at least 1 micro-batch.",
        )
    return int(steps)
