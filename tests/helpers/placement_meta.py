"""Scenarios: models built on the meta device, on all ranks or on all but rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diag.engine.options import FSDPOptions
from diag.engine.placement import meta, remap_optimizer, sheets
from diag.engine.process import Process
from helpers.placement_models import (
    GPT,
    Masked,
    Meddling,
    Normed,
    Recurrent,
    loss_of,
    tokens,
)
from helpers.placement_tools import (
    alike,
    logged,
    put,
    refusal,
    scenario,
    seeded,
    share,
    whole,
)


def unequal(model: nn.Module, reference: nn.Module) -> list[str]:
    """Names of the tensors that are not bit for bit the reference's."""
    mine, exact = model.state_dict(), reference.state_dict()
    return [name for name in exact if not torch.equal(whole(mine[name]), exact[name])]


@contextmanager
def largest_whole() -> Iterator[list[int]]:
    """[elements]: the most that lay whole on this rank at one time while values were written."""
    most = [0]
    laid_out = sheets.laid_out

    @contextmanager
    def watched(modules: Sequence[nn.Module], born: Any, through: Any) -> Iterator[None]:
        with laid_out(modules, born, through):
            held = {t for m in modules for _, t in sheets.own_tensors(m) if not t.is_meta}
            most[0] = max(most[0], sum(t.numel() for t in held))
            yield

    meta.laid_out = watched
    try:
        yield most
    finally:
        meta.laid_out = laid_out


def recurrent() -> nn.Module:
    return Recurrent()


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "gpt": GPT,
    "normed": Normed,
    "recurrent": Recurrent,
    "attention": transformer,
}


@scenario
def meta_equals_one_process(process: Process) -> Any:
    """Bit for bit, with the random state of then; one rank seeded otherwise changes nothing."""
    results = {}
    for name, kind in KINDS.items():
        for strategy in ("ddp", "fsdp"):
            reference = seeded(kind)
            after = torch.get_rng_state()
            model = seeded(kind, "meta")
            with logged() as lines:
                put(model, process, strategy)
            same_state = torch.equal(torch.get_rng_state(), after)
            results[f"{name} {strategy}"] = [unequal(model, reference), same_state, lines]
    model = seeded(GPT, "meta")
    torch.manual_seed(process.rank)
    own = torch.get_rng_state()
    put(model, process, "fsdp")
    kept = process.is_main or torch.equal(torch.get_rng_state(), own)
    results["seeded otherwise"] = [unequal(model, seeded(GPT)), kept, []]
    return results


@scenario
def meta_trains(process: Process) -> Any:
    """Recomputing, in bf16, with the optimizer built on the meta device."""
    model = seeded(GPT, "meta")
    optimizer = torch.optim.AdamW(model.parameters())
    before = dict(model.named_parameters())
    put(model, process, "fsdp", fsdp=FSDPOptions(activation_checkpointing=True), precision="bf16")
    remap_optimizer(optimizer, before, model)
    with torch.autocast("cpu", torch.bfloat16):
        first = loss_of(model, share(process, tokens(4)))
    first.backward()
    optimizer.step()
    with torch.autocast("cpu", torch.bfloat16):
        second = loss_of(model, share(process, tokens(4)))
    return [float(second) < float(first), model.head.weight is model.embed.weight,
            len(optimizer.state) == len(list(model.parameters()))]  # fmt: skip


@scenario
def meta_never_whole(process: Process) -> Any:
    """[all elements, this rank's, the most that was whole at a time, a block's]"""
    model = seeded(GPT, "meta")
    total = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.blocks[0].parameters())
    with largest_whole() as most:
        put(model, process, "fsdp")
    here = sum(p.to_local().numel() for p in model.parameters())
    return [total, here, most[0], block]


@scenario
def meta_told(process: Process) -> Any:
    """What cannot be repeated is said."""
    model = seeded(lambda: GPT(inline=True), "meta")
    with logged() as lines:
        put(model, process, "fsdp")
    differing = unequal(model, seeded(lambda: GPT(inline=True)))
    return {
        "inline": [differing, lines],
        "masked": refusal(lambda: put(seeded(Masked, "meta"), process, "fsdp")),
        "meddling": refusal(lambda: put(seeded(Meddling, "meta"), process, "fsdp")),
    }


@scenario
def meta_but_for_rank_0(process: Process) -> Any:
    """Rank 0 has read a checkpoint; the others get it. The other way round is refused."""
    results: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        for kind in (GPT, Recurrent):
            model = seeded(kind, "cpu" if process.is_main else "meta")
            put(model, process, strategy)
            loss_of(model, share(process, tokens(4))).backward()
            gradients = all(alike(process, p.grad) for p in model.parameters())
            results[f"{strategy} {kind.__name__}"] = [unequal(model, seeded(kind)), gradients]
    model = seeded(GPT, "meta" if process.is_main else "cpu")
    results["on rank 0"] = refusal(lambda: put(model, process, "fsdp"))
    return results
