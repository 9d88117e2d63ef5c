"""What users of Accelerate may look for here and not find: each with what to do instead."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import GeneratorType
from typing import Any, ParamSpec, TypeVar

from diag.errors import DiagError, UsageError

P = ParamSpec("P")
R = TypeVar("R")

# Accelerate's constructor arguments and the values that ask for nothing.
_OPTIONS = {
    "deepspeed_plugin": "Engine(strategy='fsdp') shards parameters, gradients and optimizer state "
    "as ZeRO-3 does; with fsdp=FSDPOptions(reshard_after_forward=False) as ZeRO-2.",
    "deepspeed_plugins": "Engine(strategy='fsdp') shards as ZeRO-3 does.",
    "fsdp_plugin": "Engine(strategy='fsdp', fsdp=FSDPOptions(wrap_classes=(…), …)).",
    "megatron_lm_plugin": "diag has no tensor or pipeline parallelism; Engine(strategy='fsdp') "
    "shards the model over the data-parallel ranks.",
    "torch_tp_plugin": "diag has no tensor parallelism; Engine(strategy='fsdp') shards the model.",
    "parallelism_config": "diag has data parallelism: strategy='ddp', 'fsdp' or 'auto'.",
    "dynamo_backend": "Compile the model yourself: model = torch.compile(model), then prepare it.",
    "dynamo_plugin": "Compile the model yourself: model = torch.compile(model), then prepare it.",
    "rng_types": "Nothing to synchronize: a prepared loader shuffles alike on all ranks "
    "(Engine(data_seed=…)). For the rest diag.set_seed(seed).",
    "dataloader_config": "Its fields are Engine's own arguments: split_batches, dispatch_batches, "
    "even_batches, use_seedable_sampler, data_seed, non_blocking.",
    "gradient_accumulation_plugin": "Engine(gradient_accumulation_steps=…, "
    "sync_with_dataloader=…, sync_each_batch=…).",
    "project_config": "Engine(project_dir=…, automatic_checkpoint_naming=…, total_limit=…).",
    "kwargs_handlers": "DistributedDataParallelKwargs: Engine(ddp=DDPOptions(…)). GradScalerKwargs: "
    "Engine(scaler={…}). InitProcessGroupKwargs: call torch.distributed.init_process_group "
    "before Engine(). ProfileKwargs: torch.profiler.",
    "use_stateful_dataloader": "Prepared loaders keep their position; save_state saves it.",
}
# Attributes and methods of an Accelerator.
_MEMBERS = {
    "profile": "use torch.profiler.profile, or `diag run` for where the time goes",
    "state": "its fields are the engine's own: engine.device, engine.num_processes, …",
    "gradient_state": "engine.sync_gradients and engine.gradient_accumulation_steps",
    "distributed_type": 'engine.strategy: "none", "ddp" or "fsdp"',
    "deepspeed_plugin": "engine.strategy",
    "fp8_backend": "there is no fp8",
    "lomo_backward": "there is no LOMO",
    "maybe_context_parallel": "there is no context parallelism",
    "parallelism_config": "engine.strategy",
    "project_configuration": "engine.project_dir",
    "save": "torch.save on engine.is_main_process, or engine.save_model",
    "register_save_state_pre_hook": "engine.register_for_checkpointing(object)",
    "register_load_state_pre_hook": "engine.register_for_checkpointing(object)",
    "verify_device_map": "engine.prepare does it",
    "autocast_handler": "engine.autocast(enabled=…, cache_enabled=…)",
    "is_fsdp2": 'engine.strategy == "fsdp"; it is FSDP2 always',
    "is_composable_parallelism_enabled": 'engine.strategy == "fsdp"',
    "multi_device": "engine.use_distributed",
    "torch_device_mesh": "torch.distributed.device_mesh.init_device_mesh makes one",
    "data_parallel_rank": "engine.process_index: all parallelism is over data",
    "data_parallel_shard_rank": "engine.process_index: all parallelism is over data",
    "tensor_parallel_rank": "there is no tensor parallelism",
    "pipeline_parallel_rank": "there is no pipeline parallelism",
    "context_parallel_rank": "there is no context parallelism",
    "deepspeed_ulysses_dl_adapter": "there is no sequence parallelism",
    "should_save_model": "engine.save_model is called on every rank and knows",
    "save_iteration": "save_state returns the directory it chose",
    "dataloader_config": "engine.data_options",
    "trackers": "engine.get_tracker(name)",
    "use_stateful_dataloader": "every prepared loader has state_dict and load_state_dict",
}


def refuse_options(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse constructor arguments that Engine does not have; those that ask for nothing pass.

    Raises:
        UsageError: names each and what to do instead.
    """
    asked = {name: value for name, value in given.items() if not _asks_nothing(name, value)}
    for name in asked:
        if name in _OPTIONS:
            raise UsageError("option-not-here", f"Engine has no option {name}.", _OPTIONS[name])
        near = difflib.get_close_matches(name, list(known), 1)
        hint = f"Did you mean {near[0]}?" if near else "help(diag.Engine) lists them."
        raise UsageError("unknown-option", f"Engine has no option {name}.", hint)


def _asks_nothing(name: str, value: Any) -> bool:
    if name not in _OPTIONS:
        return False
    empty = isinstance(value, (list, tuple, dict)) and not value
    return value is None or value is False or empty or str(value).lower() == "no"


def missing_member(name: str) -> AttributeError:
    """What to raise for an attribute Engine does not have."""
    instead = _MEMBERS.get(name)
    hint = f": {instead}" if instead else ""
    return AttributeError(f"Engine has no {name!r}{hint}")


def check_arguments(objects: Sequence[Any], device_placement: Sequence[bool | None]) -> None:
    """Refuse arguments of `prepare` that cannot be meant.

    Raises:
        UsageError: another number of `device_placement` than of objects.
        DiagError: a generator.
    """
    if len(device_placement) != len(objects):
        raise UsageError(
            "device-placement-length",
            f"prepare was given {len(objects)} objects and {len(device_placement)} values of "
            "device_placement.",
        )
    for index, one in enumerate(objects):
        if isinstance(one, GeneratorType):
            raise DiagError(
                "not-an-optimizer",
                f"Argument {index} of prepare is a generator ({one.__name__}), which nobody could "
                "use twice.",
                "An optimizer is meant? torch.optim.AdamW(model.parameters(), …). "
                "A loader? torch.utils.data.DataLoader(dataset, …).",
            )


def refuses(
    argument: str, instead: str, asks_nothing: Sequence[object] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: Accelerate's method of this name has one more argument, which is refused.

    Args:
        instead: what to do.
        asks_nothing: values that pass, beside None and an empty dict.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            value = kwargs.pop(argument, None)
            if value is not None and value != {} and value not in asks_nothing:
                what = f"Engine.{method.__name__} has no argument {argument}."
                raise UsageError("option-not-here", what, instead)
            return method(*args, **kwargs)

        return checked

    return decorate
