"""Accelerate's names over diag's Engine, as far as its own test scripts use them.

`back(script)` puts these in the place of a script's imports. Every name a script has from
Accelerate must be among them or in PASSED, the parts of its test kit that hold no engine: nothing
of Accelerate's own engine can slip in and pass for ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DataLoaderConfiguration, DistributedType, GradientAccumulationPlugin
from torch import Tensor

from diag import Engine
from diag.engine import collect, control
from diag.engine.data import PreparedLoader, prepare_loader
from diag.engine.options import DataOptions
from diag.engine.process import join_job
from diag.engine.seeding import set_seed
from diag.errors import DiagError


class State:
    """`PartialState` and `AcceleratorState`: one for the process."""

    debug = False
    deepspeed_plugin = None

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or Engine(strategy="ddp", cpu=True)

    @property
    def distributed_type(self) -> DistributedType:
        return DistributedType.MULTI_CPU if self.num_processes > 1 else DistributedType.NO

    @staticmethod
    def _reset_state() -> None:
        """Engine has no global state."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "debug":
            State.debug = value  # shared, as Accelerate's is
        else:
            super().__setattr__(name, value)


class GradientState:
    """What the scripts ask about the loader being iterated."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @staticmethod
    def _reset_state() -> None:
        """Engine has no global state."""

    @property
    def active_dataloader(self) -> Any:
        return self._engine.active_loader

    @property
    def end_of_dataloader(self) -> bool:
        loader = self._engine.active_loader
        return loader is not None and loader.end_of_loader


class Accelerator:
    """The constructor's nested configurations become Engine's arguments; the rest is Engine's."""

    def __init__(
        self,
        dataloader_config: DataLoaderConfiguration | None = None,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        mixed_precision: str | None = None,
    ) -> None:
        data = dataloader_config or DataLoaderConfiguration()
        windows = gradient_accumulation_plugin or GradientAccumulationPlugin(num_steps=1)
        self.engine = Engine(
            strategy="ddp",
            cpu=True,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=windows.num_steps,
            sync_with_dataloader=windows.sync_with_dataloader,
            sync_each_batch=windows.sync_each_batch,
            split_batches=data.split_batches,
            dispatch_batches=data.dispatch_batches,
            even_batches=data.even_batches,
            use_seedable_sampler=data.use_seedable_sampler,
            data_seed=data.data_seed,
        )
        self.dataloader_config = data  # one script sets use_stateful_dataloader: ours always are
        self.state = State(self.engine)
        self.gradient_state = GradientState(self.engine)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class _NoObserver:
    def loader_began(self, loader: Any) -> None:
        pass

    def loader_ended(self, loader: Any) -> None:
        pass


def prepare_data_loader(
    dataloader: Any,
    device: Any = None,
    num_processes: int | None = None,
    process_index: int | None = None,
    split_batches: bool = False,
    put_on_device: bool = False,
    dispatch_batches: bool | None = None,
    use_seedable_sampler: bool = False,
) -> Any:
    options = DataOptions(
        split_batches=split_batches,
        dispatch_batches=dispatch_batches,
        use_seedable_sampler=use_seedable_sampler,
    )
    return prepare_loader(dataloader, join_job(cpu=True), options, _NoObserver(), put_on_device)


def gather(tensor: Any) -> Any:
    return collect.gather(join_job(cpu=True), tensor, check=State.debug)


def reduce(tensor: Any, reduction: str = "mean") -> Any:
    return collect.reduce(join_job(cpu=True), tensor, reduction, check=State.debug)


def broadcast(tensor: Any, from_process: int = 0) -> Any:
    return collect.broadcast(join_job(cpu=True), tensor, from_process, check=State.debug)


def pad_across_processes(tensor: Any, dim: int = 0) -> Any:
    return collect.pad_across_processes(join_job(cpu=True), tensor, dim)


def gather_object(value: Any) -> Any:
    return collect.gather_object(join_job(cpu=True), value)


def are_the_same_tensors(tensor: Tensor) -> bool:
    everyone = gather(tensor[None])
    return all(torch.equal(one, everyone[0]) for one in everyone)


def synchronize_rng_states(kinds: list[str], generator: torch.Generator | None = None) -> None:
    """Engine needs none; two lines make it."""
    for kind in kinds:
        state = generator.get_state() if generator else torch.get_rng_state()
        broadcast(state)
        (generator.set_state if generator and kind == "generator" else torch.set_rng_state)(state)


BACKED: dict[str, Any] = {
    "Accelerator": Accelerator,
    "AcceleratorState": State,
    "PartialState": State,
    "GradientState": GradientState,
    "DataLoaderDispatcher": PreparedLoader,
    "DistributedOperationException": DiagError,
    "are_the_same_tensors": are_the_same_tensors,
    "broadcast": broadcast,
    "gather": gather,
    "gather_object": gather_object,
    "pad_across_processes": pad_across_processes,
    "prepare_data_loader": prepare_data_loader,
    "reduce": reduce,
    "set_seed": set_seed,
    "synchronize_rng_states": synchronize_rng_states,
}
PASSED = {
    "DataLoaderConfiguration",
    "DistributedType",
    "DummyOptim",  # DeepSpeed's, never made without it
    "DummyScheduler",
    "GradientAccumulationPlugin",
    "RegressionDataset",
    "RegressionModel",
    "SeedableRandomSampler",  # a sampler of the user's, as any other
    "assert_exception",
    "copy_tensor_to_devices",  # called on several GPUs only
    "is_bf16_available",
    "is_cuda_available",
    "is_datasets_available",
    "is_fp16_available",
    "is_hpu_available",
    "is_mps_available",
    "is_pytest_available",
    "is_torch_xla_available",
    "torch_device",
}


def back(script: ModuleType) -> Any:
    """`script` with diag behind it.

    Raises:
        AssertionError: it uses a name of Accelerate's that is neither ours nor known harmless.
    """
    names = {
        name: value
        for name, value in vars(script).items()
        if str(getattr(value, "__module__", "")).startswith("accelerate.")
        and value.__module__ != script.__name__
    }
    unknown = sorted(names.keys() - BACKED.keys() - PASSED)
    assert not unknown, f"{script.__name__} uses {unknown} of Accelerate's own"
    for name in vars(script).keys() & BACKED.keys():
        setattr(script, name, BACKED[name])
    return script


@contextmanager
def shared_directory() -> Iterator[str]:
    """A temporary directory, one for all ranks as save_state wants it."""
    process = join_job(cpu=True)
    with tempfile.TemporaryDirectory() as own:
        yield collect.broadcast_object_list(process, [own])[0]
        control.wait_for_everyone(process)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
