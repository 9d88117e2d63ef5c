"""Scenarios: optimizers built, and even used, before their model is placed."""

from __future__ import annotations

import copy
from typing import Any

import torch

from diag.engine.placement import remap_optimizer
from diag.engine.process import Process
from helpers.placement_models import GPT, loss_of, tokens
from helpers.placement_tools import (
    OPTIMIZERS,
    put,
    refusal,
    scenario,
    seeded,
    trained_apart,
)


@scenario
def optimizer_has_stepped(process: Process) -> Any:
    """What it has accumulated goes on; rank 0's, where the ranks' differ."""
    results = {}
    for strategy in ("ddp", "fsdp"):
        for name, make in OPTIMIZERS.items():
            model = seeded(GPT).double()
            optimizer = make(model.parameters())
            loss_of(model, tokens(4, seed=9)).backward()
            optimizer.step()
            optimizer.zero_grad()
            reference = copy.deepcopy(model)
            exact = make(reference.parameters())
            exact.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if not process.is_main:  # a history of its own
                for state in optimizer.state.values():
                    for value in state.values():
                        value.add_(1)
            before = dict(model.named_parameters())
            put(model, process, strategy)
            remap_optimizer(optimizer, before, model)
            apart = trained_apart(process, model, reference, [optimizer, exact])
            results[f"{strategy} {name}"] = [apart["loss"] < 1e-14, apart["weights"] < 1e-14]
    return results


@scenario
def groups_stay(process: Process) -> Any:
    """Groups, their options, tied and foreign parameters, and the very list an optimizer holds."""
    model = seeded(GPT)
    foreign = torch.nn.Parameter(torch.ones(2))
    groups = [
        {"params": [model.head.weight, foreign], "lr": 0.5},
        {"params": list(model.blocks.parameters())},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    lists = [group["params"] for group in optimizer.param_groups]
    before = dict(model.named_parameters())
    put(model, process, "fsdp")
    remap_optimizer(optimizer, before, model)
    first, second = optimizer.param_groups
    return [
        [group["lr"] for group in optimizer.param_groups],
        first["params"][0] is model.embed.weight and first["params"][1] is foreign,
        all(p is q for p, q in zip(second["params"], model.blocks.parameters(), strict=True)),
        all(a is b["params"] for a, b in zip(lists, optimizer.param_groups, strict=True)),
    ]


@scenario
def state_refused(process: Process) -> Any:
    def of_another_shape() -> None:
        model = seeded(GPT)
        optimizer = torch.optim.Adafactor(model.parameters())
        loss_of(model, tokens(2)).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = dict(model.named_parameters())
        put(model, process, "fsdp")
        remap_optimizer(optimizer, before, model)

    def on_one_rank() -> None:
        model = seeded(GPT)
        optimizer = torch.optim.AdamW(model.parameters())
        if process.is_main:
            loss_of(model, tokens(2)).backward()
            optimizer.step()
            optimizer.zero_grad()
        before = dict(model.named_parameters())
        put(model, process)
        remap_optimizer(optimizer, before, model)

    return [refusal(of_another_shape), refusal(on_one_rank)]
