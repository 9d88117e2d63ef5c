"""Accelerate's own test scripts, function by function as their `main` calls them, over diag's Engine.

`python -m helpers.accelerate_ranks DIRECTORY GROUP` as 2 ranks. A rank stops at the first failure:
what comes after it could only hang.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

from diag.engine.process import rank_and_world_size
from helpers import accelerate_shim, fake_hf
from helpers.ranks import say

Case = tuple[str, Callable[[], Any]]
SCRIPTS = "accelerate.test_utils.scripts."


def script(name: str) -> Any:
    return accelerate_shim.back(importlib.import_module(SCRIPTS + name))


def named(module: Any, names: str, *args: Callable[[], Any]) -> Iterator[Case]:
    """The module's functions, called with the arguments made when it is their turn."""
    for name in names.split():
        yield (
            name,
            functools.partial(lambda f: f(*[make() for make in args]), getattr(module, name)),
        )


def ops() -> Iterator[Case]:
    module = script("test_ops")
    names = (
        "test_gather test_gather_object test_gather_non_contiguous test_broadcast "
        "test_pad_across_processes test_reduce_sum test_reduce_mean test_reduce_max test_op_checker"
    )
    yield from named(module, names, accelerate_shim.State)


def sync() -> Iterator[Case]:
    module = script("test_sync")
    original = module.RegressionDataset
    # Their 80 samples end in a window that is not full, which weighs half in Accelerate and one
    # in Engine. 128 fill every window.
    module.RegressionDataset = lambda length: original(length=128 if length == 80 else length)
    yield from named(module, "test_dataloader_break")
    names = "test_distributed_sync test_distributed_sync_multiple_fwd"
    yield from named(module, names, module.Accelerator)
    combinations = [
        {"split_batches": split, "dispatch_batches": dispatch, "sync_each_batch": each}
        for split in (True, False)
        for dispatch in (True, False)
        for each in (True, False)
    ]
    for options in combinations:
        told = ",".join(name.split("_")[0] for name, on in options.items() if on) or "default"
        function = functools.partial(module.test_gradient_accumulation, **options)
        yield f"test_gradient_accumulation[{told}]", function
        if options["split_batches"]:  # the others expect N scheduler steps per optimizer step
            name = "test_gradient_accumulation_with_opt_and_scheduler"
            yield f"{name}[{told}]", functools.partial(getattr(module, name), **options)


def data_loop() -> Iterator[Case]:
    module = script("test_distributed_data_loop")
    module.tempfile = SimpleNamespace(TemporaryDirectory=accelerate_shim.shared_directory)
    yield from named(
        module,
        "test_default_ensures_even_batch_sizes test_can_disable_even_batches "
        "test_can_join_uneven_inputs test_join_can_override_even_batches "
        "test_join_can_override_for_mixed_type_dataloaders",
    )
    for kind, loader in data_loop_loaders(module).items():
        name = f"test_data_loader[{kind}]"
        yield name, functools.partial(module.test_data_loader, loader, module.create_accelerator())
    names = "test_stateful_dataloader test_stateful_dataloader_save_state"
    yield from named(module, names, module.create_accelerator)


def data_loop_loaders(module: Any) -> dict[str, DataLoader[Any]]:
    """Those of the script's `main`."""
    data, size = module.DummyDataset(), module.BATCH_SIZE
    shared = {"num_workers": 2}

    def batches() -> BatchSampler:
        return BatchSampler(RandomSampler(data), batch_size=size, drop_last=False)

    return {
        "in order": DataLoader(data, shuffle=False, batch_size=size, **shared),
        "shuffled": DataLoader(data, shuffle=True, batch_size=size, **shared),
        "batch_sampler": DataLoader(data, batch_sampler=batches(), **shared),
        "batch_size=None": DataLoader(
            data, sampler=batches(), batch_size=None, collate_fn=default_collate, **shared
        ),
    }


def general() -> Iterator[Case]:
    module = script("test_script")
    yield from named(
        module,
        "process_execution_check init_state_check test_split_between_processes_list "
        "test_split_between_processes_nested_dict test_split_between_processes_tensor "
        "test_split_between_processes_evenly rng_sync_check dl_preparation_check "
        "central_dl_preparation_check custom_sampler_check check_seedable_sampler "
        "check_seedable_sampler_with_data_seed",
    )
    # Not with False: that shuffle replays a generator, Engine's is drawn from a seed and the epoch.
    yield "training_check[seedable]", functools.partial(module.training_check, True)
    yield from named(module, "test_trigger")


def metrics() -> Iterator[Case]:
    with fake_hf.installed():
        module = script("external_deps.test_metrics")
    make = module.Accelerator
    for split in (True, False):
        for dispatch in (True, False):
            options = module.DataLoaderConfiguration(split_batches=split, dispatch_batches=dispatch)
            accelerator = make(dataloader_config=options)
            function = functools.partial(module.test_torch_metrics, accelerator, 99)
            yield f"test_torch_metrics[{split=},{dispatch=}]", function
    yield "test_torch_metrics[512]", functools.partial(module.test_torch_metrics, make(), 512)
    yield from named(
        module,
        "test_gather_for_metrics_drop_last test_gather_for_metrics_with_iterable_dataset "
        "test_gather_for_metrics_with_non_tensor_objects_iterable_dataset",
    )


def checkpointing(directory: Path) -> Iterator[Case]:
    with fake_hf.installed():
        module = script("external_deps.test_checkpointing")
    module.get_dataloaders = fake_hf.get_dataloaders
    config = {"lr": 0.5, "num_epochs": 2, "seed": 42, "batch_size": 8}
    for partial, resumed in ((1, None), (None, "epoch_0")):
        args = SimpleNamespace(
            model_name_or_path="small",
            output_dir=str(directory),
            resume_from_checkpoint=resumed and str(directory / resumed),
            partial_train_epoch=partial,
        )
        name = "training_function" + (f"[resume {resumed}]" if resumed else "")
        yield name, functools.partial(module.training_function, config, args)


def cases(group: str, directory: Path) -> Iterator[Case]:
    if group == "checkpointing":
        return checkpointing(directory)
    groups = {f.__name__: f for f in (ops, sync, data_loop, general, metrics)}
    return groups[group]()


def main() -> None:
    directory, groups = Path(sys.argv[1]), sys.argv[2:]
    rank, _ = rank_and_world_size()
    os.chdir(directory)
    passed: dict[str, str] = {}
    for group in groups:
        for name, run in cases(group, directory):
            print(f"-- {group}: {name}", flush=True)
            try:
                run()
            except BaseException:
                passed[f"{group}: {name}"] = traceback.format_exc()
                say(directory, rank, passed)
                os._exit(0)  # a clean exit would wait for the others
            passed[f"{group}: {name}"] = "passed"
    say(directory, rank, passed)
    gc.collect()
    accelerate_shim.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
