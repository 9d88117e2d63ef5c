"""`Engine`: a custom single-GPU training loop on N GPUs. The façade; its rooms do the work."""

from __future__ import annotations

import gc
import inspect
import sys
import textwrap
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from diag.engine import control, losses, precision
from diag.engine.checkpoint import Naming, Parts, Stateful
from diag.engine.data import prepare_loader, skip_first_batches
from diag.engine.logs import get_logger
from diag.engine.models import Models, is_trainable
from diag.engine.optimizer import gate_of, put_gate
from diag.engine.options import DataOptions, DDPOptions, FSDPOptions, Strategy
from diag.engine.process import join_job
from diag.engine.scheduler import step_with_optimizer
from diag.engine.surface_collect import CollectSurface
from diag.engine.surface_data import DataSurface
from diag.engine.surface_process import ProcessSurface
from diag.engine.surface_refused import check_arguments, missing_member, refuse_options, refuses
from diag.engine.surface_state import Directory, StateSurface
from diag.engine.surface_training import TrainingSurface
from diag.engine.tracking import Trackers
from diag.engine.uneven import check_before_forward
from diag.errors import DiagError
from diag.probes import current

Model = TypeVar("Model", bound=nn.Module)
Opt = TypeVar("Opt", bound=Optimizer)
Scheduler = TypeVar("Scheduler", bound=LRScheduler)
_logger = get_logger(__name__)


class Engine(TrainingSurface, DataSurface, CollectSurface, ProcessSurface, StateSurface):
    """Trains what it is given on all ranks of the job, equal to one process.

        engine = Engine()
        model, optimizer, loader, scheduler = engine.prepare(model, optimizer, loader, scheduler)
        for x, y in loader:
            loss = loss_of(model(x), y)
            engine.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    Models, optimizers and schedulers stay the objects they are; a loader is replaced by one that
    gives this rank's batches, on its device. Without a launcher it is a plain single process.

    Args:
        strategy: "ddp" keeps the model on every rank, "fsdp" a part of it; "auto" takes DDP
            while it fits (`why_strategy` says with which numbers).
        mixed_precision: "no"; "bf16": autocast; "fp16": autocast and a loss scale.
        gradient_accumulation_steps: micro-batches per optimizer step, in `with engine.accumulate()`.
        sync_with_dataloader: a loader's end closes the window, which then weighs what it holds.
        sync_each_batch: synchronize every micro-batch: more traffic, less memory with FSDP.
        cpu: train on the CPU even where GPUs are present.
        device_placement: put models and batches on the device.
        split_batches, even_batches, dispatch_batches, use_seedable_sampler, data_seed,
            non_blocking: see `DataOptions`.
        ddp, fsdp: see `DDPOptions` and `FSDPOptions`.
        scaler: arguments of torch.amp.GradScaler, for "fp16".
        step_scheduler_with_optimizer: False lets schedulers step whenever they are called.
        on_nonfinite_loss: "warn" says so once; "raise"; "ignore".
        check_shapes: compare the ranks' shapes in every gather, reduce and broadcast.
        project_dir, automatic_checkpoint_naming, total_limit: see `Naming`.
        logging_dir: where trackers write; `project_dir` if left out.
        log_with: "jsonl", or any object that is a `Tracker`; a list of them.

    Raises:
        UsageError: an option it does not have; one of Accelerate's is answered with what to do
            instead.
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "auto",
        mixed_precision: str | None = "no",
        gradient_accumulation_steps: int = 1,
        sync_with_dataloader: bool = True,
        sync_each_batch: bool = False,
        cpu: bool = False,
        device_placement: bool = True,
        split_batches: bool = False,
        even_batches: bool = True,
        dispatch_batches: bool | None = None,
        use_seedable_sampler: bool = True,
        data_seed: int | None = None,
        non_blocking: bool = False,
        ddp: DDPOptions | None = None,
        fsdp: FSDPOptions | None = None,
        scaler: Mapping[str, Any] | None = None,
        step_scheduler_with_optimizer: bool = True,
        on_nonfinite_loss: losses.OnNonfinite = "warn",
        check_shapes: bool = False,
        project_dir: Directory | None = None,
        automatic_checkpoint_naming: bool = False,
        total_limit: int | None = None,
        logging_dir: Directory | None = None,
        log_with: Any = None,
        **refused: Any,
    ) -> None:
        refuse_options(refused, inspect.signature(Engine).parameters)
        mode = precision.parse(mixed_precision)
        self.process = join_job(cpu)
        self.data_options = DataOptions(
            split_batches,
            even_batches,
            dispatch_batches,
            use_seedable_sampler,
            data_seed,
            non_blocking,
        )
        self._models = Models(
            self.process, strategy, mode, ddp or DDPOptions(), fsdp or FSDPOptions()
        )
        self._init_training(
            gradient_accumulation_steps,
            sync_with_dataloader,
            sync_each_batch,
            mode,
            scaler or {},
            on_nonfinite_loss,
        )
        self.device_placement = device_placement
        self.step_scheduler_with_optimizer = step_scheduler_with_optimizer
        self.check_shapes = check_shapes
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[LRScheduler] = []
        self._loaders: list[Any] = []
        self._naming = Naming(project_dir, automatic_checkpoint_naming, total_limit)
        self._registered: list[Stateful] = []
        self._trackers: Trackers | None = None
        self._log_with, self._logging_dir = log_with, logging_dir
        self._trigger = control.Trigger()
        if current.session is not None:
            current.session.note(mode="engine")

    # -- preparing ----------------------------------------------------------------------

    def prepare(self, *objects: Any, device_placement: Sequence[bool | None] | None = None) -> Any:
        """Make models, optimizers, schedulers and loaders ready for all ranks. Collective.

        Any order, together or one by one; what is prepared already stays, what is unknown passes
        through.

        Args:
            device_placement: for each object whether to put it on the device; None: as the engine.

        Returns:
            The objects in the order given; a single one alone.

        Raises:
            DiagError: a generator (the parameters in place of their optimizer?), a model on
                several devices, an optimizer that has already stepped with what is sharded now.
        """
        moves = device_placement if device_placement is not None else [None] * len(objects)
        check_arguments(objects, moves)
        models = [one for one in objects if isinstance(one, nn.Module)]
        given = [one for one in objects if isinstance(one, Optimizer)]
        self._decide(models, [*self._optimizers, *given])
        trains = any(map(is_trainable, models)) or not given
        prepared: dict[int, Any] = dict.fromkeys(range(len(objects)))
        # Models first: placing them may give optimizers other parameters to hold.
        for index in sorted(prepared, key=lambda i: not isinstance(objects[i], nn.Module)):
            prepared[index] = self._prepare_one(objects[index], moves[index], trains)
        return tuple(prepared.values()) if len(objects) != 1 else prepared[0]

    def _prepare_one(self, one: Any, move: bool | None, trains: bool) -> Any:
        if isinstance(one, nn.Module):
            # A frozen model beside a trained one is a teacher; alone with an optimizer, a mistake.
            return self.prepare_model(one, move, evaluation_mode=trains and not is_trainable(one))
        if isinstance(one, Optimizer):
            return self.prepare_optimizer(one)
        if isinstance(one, LRScheduler):
            return self.prepare_scheduler(one)
        return self.prepare_data_loader(one, move) if isinstance(one, DataLoader) else one

    def _decide(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        undecided = self._models.strategy == "auto"
        self._models.decide(models, optimizers)
        if undecided and self.why_strategy and self.is_main_process:
            print(textwrap.fill(f"diag: {self.why_strategy}", 80), file=sys.stderr, flush=True)

    def prepare_model(
        self, model: Model, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Model:
        """Place one model; see `prepare`.

        Args:
            evaluation_mode: only evaluated: on the device, in this precision, not synchronized.
        """
        if model in self._models:
            return model
        if not evaluation_mode:
            self._decide([model], self._optimizers)
        move = self.device_placement if device_placement is None else device_placement
        self._models.add(model, move, train=not evaluation_mode)
        if self.process.distributed and not evaluation_mode:
            # Weakly, and by a function: a copy of the model must not copy the engine.
            engine = weakref.ref(self)
            check_before_forward(model, lambda one: _checked(engine(), one))
        for optimizer in self._optimizers:
            self._models.follow(optimizer)
        return model

    @refuses("device_placement", "Its state lies where its parameters do.", (True, False))
    def prepare_optimizer(self, optimizer: Opt) -> Opt:
        """Have one optimizer act only on whole gradients; see `prepare`."""
        if not isinstance(optimizer, Optimizer):
            raise DiagError(
                "not-an-optimizer",
                f"prepare_optimizer takes a torch optimizer, not a {type(optimizer).__name__}.",
            )
        if all(optimizer is not one for one in self._optimizers):
            self._models.follow(optimizer)
            put_gate(optimizer, lambda: self._window, self._scale)
            self._optimizers.append(optimizer)
        return optimizer

    def prepare_scheduler(self, scheduler: Scheduler) -> Scheduler:
        """Have one scheduler step once per step of its optimizer; see `prepare`."""
        if all(scheduler is not one for one in self._schedulers):
            if self.step_scheduler_with_optimizer:
                step_with_optimizer(scheduler)
            self._schedulers.append(scheduler)
        return scheduler

    @refuses("slice_fn_for_dispatch", "Batches are cut along their first dimension.")
    def prepare_data_loader(self, loader: Any, device_placement: bool | None = None) -> Any:
        """A loader that gives this rank's batches; see `prepare`."""
        if any(loader is one for one in self._loaders):
            return loader
        move = self.device_placement if device_placement is None else device_placement
        prepared = prepare_loader(loader, self.process, self.data_options, self, move)
        self._loaders.append(prepared)
        return prepared

    def skip_first_batches(self, loader: Any, num_batches: int = 0) -> Any:
        """The loader without its first batches, for the rest of an epoch."""
        return skip_first_batches(loader, num_batches)

    # -- letting go ---------------------------------------------------------------------

    def free_memory(self, *objects: Any) -> list[None]:
        """Forget all that was prepared, and collect garbage; for another training in this process.

        Returns:
            As many None as objects given: `model, optimizer = engine.free_memory(model, optimizer)`.
        """
        for optimizer in self._optimizers:
            gate = gate_of(optimizer)
            if gate is not None:
                gate.released = True
        for kept in (self._optimizers, self._schedulers, self._loaders, self._registered):
            kept.clear()
        self._models.clear()
        self._steps_before = 0
        self._forget_windows()
        nothing = [None] * len(objects)
        del objects
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return nothing

    clear = free_memory

    def _parts(self) -> Parts:
        if self._window.partial:
            _logger.warning(
                "The state is saved or loaded in the middle of an accumulation window: the "
                "gradients of its micro-batches so far are no part of it."
            )
        if self._scale is not None:
            self._scale.settle()
        return Parts(
            models=self._models.placed,
            optimizers=self._optimizers,
            schedulers=self._schedulers,
            scaler=self.scaler,
            loaders=self._loaders,
            custom=self._registered,
        )

    def __getattr__(self, name: str) -> Any:
        raise missing_member(name)


def _checked(engine: Engine | None, model: nn.Module) -> None:
    if engine is not None:
        engine._before_forward(model)
