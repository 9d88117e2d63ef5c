"""A model's tensors by the names they have without any wrapper, whichever way it is placed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from diag.engine.placement.shards import is_sharded
from diag.errors import DiagError

# What torch.compile and activation checkpointing put between a module and its parameters' names.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def unwrap_model(model: nn.Module, keep_torch_compile: bool = True) -> nn.Module:
    """The user's own module inside DistributedDataParallel and, on request, torch.compile.

    What the engine places it places in place, so its models are their own unwrapped selves.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif not keep_torch_compile and "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def model_state(model: nn.Module) -> dict[str, Any]:
    """The model's own tensors, sharded as they are, and its extra state by name; nothing is copied.

    Raises:
        DiagError: it is on the meta device.
    """
    held = model.state_dict(keep_vars=True)
    if not held:
        return {}  # torch's function has no answer for a model without state
    if unmade := [n for n, t in held.items() if isinstance(t, Tensor) and t.is_meta]:
        raise DiagError(
            "model-on-meta",
            f"{len(unmade)} of the model's tensors have no storage yet, {_bare(unmade[0])} first.",
            "Prepare the model before saving or loading its state.",
        )
    state: dict[str, Any] = get_model_state_dict(model)
    return state


def set_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the model a state of the form `model_state` returns; every key must be there."""
    if state:
        set_model_state_dict(model, dict(state))


def parameter_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by name, without wrappers' prefixes; tied ones under each of their names."""
    named = unwrap_model(model, keep_torch_compile=False).named_parameters(remove_duplicate=False)
    return {_bare(name): parameter for name, parameter in named}


def buffer_names(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """The tensors of `model_state` that are no parameters: each rank may have its own."""
    own = {n for n, v in state.items() if isinstance(v, Tensor) and not is_sharded(v)}
    return sorted(own - parameter_names(model).keys())


def name_parameters(models: Mapping[str, nn.Module]) -> dict[int, str]:
    """Names by id(parameter) over all models, by their keys; the first name of tied ones."""
    names: dict[int, str] = {}
    for key, model in models.items():
        for name, parameter in parameter_names(model).items():
            names.setdefault(id(parameter), f"{key}.{name}")
    return names


def name_loose(optimizers: Mapping[str, Optimizer], names: dict[int, str]) -> dict[str, Tensor]:
    """Add to `names` the parameters that only an optimizer knows, and give them by name.

    They belong to no model (a learned temperature, say), so nothing else would save them.
    """
    loose: dict[str, Tensor] = {}
    for key, optimizer in optimizers.items():
        for index, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                if id(parameter) not in names:
                    names[id(parameter)] = f"{key}.parameter.{index}.{place}"
                    loose[names[id(parameter)]] = parameter.detach()
    return loose


def check_same_tensors(key: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse another model's tensors.

    Args:
        saved, here: shapes by name; None for what is no tensor.

    Raises:
        DiagError: other names or shapes; it lists the first of each kind.
    """
    missing = [f"{n} {_shape(here[n])}" for n in here if n not in saved]
    unknown = [f"{n} {_shape(saved[n])}" for n in saved if n not in here]
    reshaped = [
        f"{n} ({_shape(saved[n])} saved, {_shape(here[n])} here)"
        for n in here
        if n in saved and saved[n] != here[n]
    ]
    differences = [
        f"{what} {len(names)}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (
            ("not in the checkpoint", missing),
            ("only in the checkpoint", unknown),
            ("of another shape", reshaped),
        )
        if names
    ]
    if differences:
        raise DiagError(
            "checkpoint-other-model",
            f"{key} is not the model that was saved ({len(here)} tensors here, {len(saved)} there); "
            f"{'; '.join(differences)}.",
            "Build the model with the same configuration as when the checkpoint was saved.",
        )


def tied_to(model: nn.Module) -> dict[str, str]:
    """For each parameter or buffer with several names: every further name → the first."""
    first: dict[int, str] = {}
    inner = unwrap_model(model, keep_torch_compile=False)
    tied: dict[str, str] = {}
    for named in (inner.named_parameters, inner.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            known = first.setdefault(id(tensor), _bare(name))
            if known != _bare(name):
                tied[_bare(name)] = known
    return tied


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _shape(shape: Any) -> str:
    return "(no tensor)" if shape is None else str(list(shape))
