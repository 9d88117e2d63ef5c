"""Scenarios: placed models train as one process does, whatever is done with them besides."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from diag.engine.options import DDPOptions, FSDPOptions
from diag.engine.placement import ddp_of, is_placed, remap_optimizer, set_gradient_sync
from diag.engine.process import Process
from helpers.placement_models import GPT, VOCABULARY, Block, Normed, loss_of, tokens
from helpers.placement_tools import (
    OPTIMIZERS,
    ROWS,
    alike,
    logged,
    put,
    refusal,
    scenario,
    seeded,
    share,
    trained_apart,
    whole,
)

# -- equal to one process -----------------------------------------------------------------------


def equal_to_one_process(
    process: Process, name: str, optimizer_first: bool = False, **placing: Any
) -> dict[str, Any]:
    """From unequal weights on the ranks, of which rank 0's count."""
    reference = seeded(GPT).double()
    model = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(process.rank)
    before = dict(model.named_parameters())
    optimizer = OPTIMIZERS[name](model.parameters()) if optimizer_first else None
    put(model, process, **placing)
    if optimizer is None:
        optimizer = OPTIMIZERS[name](model.parameters())
    else:
        remap_optimizer(optimizer, before, model)
    apart = trained_apart(
        process, model, reference, [optimizer, OPTIMIZERS[name](reference.parameters())]
    )
    return apart | {"tied": model.head.weight is model.embed.weight}  # type: ignore[union-attr]


@scenario
def parity(process: Process) -> Any:
    cases: dict[str, dict[str, Any]] = {
        "ddp": {"strategy": "ddp"},
        "ddp static": {"strategy": "ddp", "ddp": DDPOptions(static_graph=True)},
        "ddp views": {
            "strategy": "ddp",
            "ddp": DDPOptions(gradient_as_bucket_view=True, bucket_cap_mb=0.001),
        },
        "fsdp": {"strategy": "fsdp"},
        "fsdp kept": {"strategy": "fsdp", "fsdp": FSDPOptions(reshard_after_forward=False)},
        "fsdp recomputed": {
            "strategy": "fsdp",
            "fsdp": FSDPOptions(activation_checkpointing=True),
        },
        "ddp recomputed": {"strategy": "ddp", "fsdp": FSDPOptions(activation_checkpointing=True)},
        "fsdp by class": {
            "strategy": "fsdp",
            "fsdp": FSDPOptions(wrap_classes=("Block", "LayerNorm")),
        },
    }
    results = {
        f"{case}, {name}, optimizer {'first' if first else 'last'}": equal_to_one_process(
            process, name, first, **placing
        )
        for case, placing in cases.items()
        for name, first in (("sgd", False), ("adamw", True))
    }
    return {
        case: [r["loss"] < 1e-14, r["weights"] < 1e-14, r["tied"]] for case, r in results.items()
    }


@scenario
def accumulation(process: Process) -> Any:
    """Gradients stay each rank's own until a synchronizing backward averages all of them."""
    results = {}
    for strategy, ddp in (
        ("ddp", DDPOptions()),
        ("ddp", DDPOptions(static_graph=True)),
        ("fsdp", DDPOptions()),
    ):
        reference = seeded(GPT).double()
        model = put(copy.deepcopy(reference), process, strategy, ddp)
        worst = 0.0
        for step in range(3):
            for p in (*model.parameters(), *reference.parameters()):
                p.grad = None
            for micro in range(3):
                set_gradient_sync(model, micro == 2)
                batch = tokens(ROWS * process.world_size, seed=3 * step + micro)
                loss_of(model, share(process, batch)).backward()
                loss_of(reference, batch).backward()
                if micro == 0 and step == 2:
                    own = model.head.weight.grad  # type: ignore[union-attr]
                    apart = own is None or not alike(process, own)
            pairs = zip(model.parameters(), reference.parameters(), strict=True)
            for p, q in pairs:
                worst = max(worst, float((whole(p.grad) - q.grad).norm() / q.grad.norm()))
        results[f"{strategy} static={ddp.static_graph}"] = [apart, worst < 1e-14]
    return results


def watched_dtype(layer: nn.Linear) -> list[torch.dtype]:
    """What its weight's dtype is in each forward."""
    seen: list[torch.dtype] = []
    layer.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
    return seen


@scenario
def bf16(process: Process) -> Any:
    """A bf16 model; and bf16 computing on float32 weights, under autocast as the engine does."""
    results: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        model = put(seeded(GPT).to(torch.bfloat16), process, strategy)
        loss_of(model, share(process, tokens(4))).backward()
        gradient = model.head.weight.grad
        results[f"{strategy} bf16 model"] = [str(gradient.dtype), alike(process, gradient.float())]
    grads = []
    for strategy in ("ddp", "fsdp"):
        model = put(seeded(GPT), process, strategy, precision="bf16")
        up = model.blocks[0].up
        computed_in = watched_dtype(up)
        with torch.autocast("cpu", torch.bfloat16):
            loss_of(model, share(process, tokens(4))).backward()
        dtypes = [*computed_in, up.weight.dtype, up.weight.grad.dtype]
        results[f"{strategy} autocast"] = [str(dtype) for dtype in dtypes]
        grads.append([whole(p.grad) for p in model.parameters()])
    results["equal"] = all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    return results


# -- under DDP ----------------------------------------------------------------------------------


@scenario
def ddp_buffers(process: Process) -> Any:
    """Buffers are rank 0's at the start and before each forward; or never, if so wished."""
    results = {}
    for broadcast in (True, False):
        model = Normed()
        with torch.no_grad():
            model.norm.running_mean.fill_(process.rank)
        put(model, process, ddp=DDPOptions(broadcast_buffers=broadcast))
        start = alike(process, model.norm.running_mean)
        for step in range(2):
            model(torch.randn(4, 4) + process.rank + step).sum().backward()
        model.eval()
        model(torch.randn(4, 4)).sum().backward()
        results[str(broadcast)] = [start, alike(process, model.norm.running_mean)]
    return results


@scenario
def ddp_keeps_the_model(process: Process) -> Any:
    """Its class, its names, and that it can be copied, averaged and saved: as a plain model."""
    model = seeded(GPT)
    names = list(model.state_dict())
    put(model, process, fsdp=FSDPOptions(activation_checkpointing=True))
    loss_of(model, share(process, tokens(4))).backward()
    twin, average = copy.deepcopy(model), AveragedModel(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    apart = []
    for copied in (twin, average.module, loaded):
        copied.zero_grad()
        loss_of(copied, share(process, tokens(4, seed=1))).backward()
        apart.append(not alike(process, copied.head.weight.grad))
        apart.append(not is_placed(copied))
    return [type(model).__name__, list(model.state_dict()) == names, apart]


@scenario
def ddp_options(process: Process) -> Any:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    def steps(model: nn.Module) -> list[str]:
        try:
            for _ in range(2):
                model(torch.ones(2, 3) * process.rank).sum().backward()
        except RuntimeError as error:
            return [str(error).split(".")[0]]
        return [str(alike(process, model.used.weight.grad))]

    small = put(Partly(), process, ddp=DDPOptions(bucket_cap_mb=1, gradient_as_bucket_view=True))
    return {
        "unused": steps(put(Partly(), process, ddp=DDPOptions(find_unused_parameters=True))),
        "not told": steps(put(Partly(), process)),
        "bucket": [ddp_of(small).bucket_bytes_cap, ddp_of(small).gradient_as_bucket_view],
    }


@scenario
def ddp_sparse_and_frozen(process: Process) -> Any:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    put(model, process)
    model(torch.tensor([process.rank])).sum().backward()
    gradient = model[0].weight.grad
    frozen = model[1].weight
    return [gradient.is_sparse, alike(process, gradient.to_dense()), frozen.grad is None,
            alike(process, frozen)]  # fmt: skip


@scenario
def after_a_failed_forward(process: Process) -> Any:
    model = put(seeded(GPT), process)
    try:
        model(torch.full((1, 2), VOCABULARY))
    except IndexError:
        loss_of(model, share(process, tokens(4))).backward()
    return alike(process, model.head.weight.grad)


@scenario
def other_methods(process: Process) -> Any:
    """A method that computes without calling the model synchronizes if it was named."""
    results = {}
    for strategy in ("ddp", "fsdp"):
        model = put(seeded(GPT), process, strategy, fsdp=FSDPOptions(methods=("score",)))
        model.score(share(process, tokens(4))).backward()
        own = model.blocks[0].up.weight
        results[strategy] = alike(process, own.grad)
    unnamed = put(seeded(GPT), process)
    unnamed.score(share(process, tokens(4))).backward()
    results["unnamed"] = alike(process, unnamed.blocks[0].up.weight.grad)
    return results


def block() -> nn.Module:
    return Block(6)


def inputs(rank: int) -> torch.Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(rank))


@scenario
def compiled(process: Process) -> Any:
    """torch.compile before or after placing, in place or not: gradients are averaged."""
    alone = seeded(block)
    for rank in range(process.world_size):
        alone(inputs(rank)).square().sum().backward()
    expected = alone.up.weight.grad / process.world_size
    results = {}
    for strategy, orders in (
        ("ddp", ("before", "after", "in place")),
        ("fsdp", ("before", "after")),
    ):
        for order in orders:
            torch.compiler.reset()
            model = called = seeded(block)
            if order == "in place":
                model.compile(backend="eager")
            elif order == "before":
                called = torch.compile(model, backend="eager")
            put(called, process, strategy)
            if order == "after":
                called = torch.compile(model, backend="eager")
            called(inputs(process.rank)).square().sum().backward()
            gap = float((whole(model.up.weight.grad) - expected).norm() / expected.norm())
            results[f"{strategy}, compiled {order}"] = [gap < 1e-5, is_placed(called)]
    return results


# -- under FSDP ---------------------------------------------------------------------------------


@scenario
def fsdp_shards(process: Process) -> Any:
    model = seeded(GPT)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    total = sum(p.numel() for p in model.parameters())
    put(model, process, "fsdp", fsdp=FSDPOptions(activation_checkpointing=True))
    here = sum(p.to_local().numel() for p in model.parameters())
    empty = model.gain.weight.to_local().numel()
    state = {name: tensor.shape for name, tensor in model.state_dict().items()}
    blocks = sum(isinstance(block, FSDPModule) for block in model.blocks)
    return [total, here, empty, state == names, blocks, isinstance(model, FSDPModule)]


@scenario
def fsdp_gives_back(process: Process) -> Any:
    """After an evaluation, and by zero_grad before a backward, the model's parameters are the
    sharded ones: their gradients are what is cleared."""
    results = {}
    for kept in (False, True):
        model = put(seeded(GPT), process, "fsdp", fsdp=FSDPOptions(reshard_after_forward=not kept))
        held = list(model.parameters())
        loss_of(model, share(process, tokens(4))).backward()
        with torch.no_grad():
            model(tokens(2))
        same = all(p is q for p, q in zip(held, model.parameters(), strict=True))
        model.zero_grad()
        cleared = all(p.grad is None for p in held)
        loss_of(model, share(process, tokens(4))).backward()
        once = [p.grad.clone() for p in held]
        loss = loss_of(model, share(process, tokens(4)))
        model.zero_grad()
        loss.backward()
        again = all(
            torch.equal(p.grad.to_local(), g.to_local()) for p, g in zip(held, once, strict=True)
        )
        results[f"kept={kept}"] = [same, cleared, again]
    return results


@scenario
def fsdp_buffers(process: Process) -> Any:
    """Rank 0's at the start; then every rank's own, as the documentation says."""
    model = Normed()
    with torch.no_grad():
        model.norm.running_mean.fill_(process.rank)
    put(model, process, "fsdp")
    start = alike(process, model.norm.running_mean)
    model(torch.randn(4, 4) + process.rank).sum().backward()
    return [start, alike(process, model.norm.running_mean)]


@scenario
def fsdp_frozen_and_strided(process: Process) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    model = model.to(memory_format=torch.channels_last)
    model[1].requires_grad_(False)
    put(model, process, "fsdp")
    model(torch.randn(2, 3, 2, 2) + process.rank).sum().backward()
    return [alike(process, model[0].weight.grad), model[1].weight.grad is None]


# -- placed already, or not to be placed --------------------------------------------------------


@scenario
def twice(process: Process) -> Any:
    results = {}
    for strategy in ("ddp", "fsdp"):
        model = put(seeded(GPT), process, strategy)
        first = (ddp_of(model), model.head.weight)
        with logged() as lines:
            put(model, process, strategy)
        results[strategy] = [first == (ddp_of(model), model.head.weight), lines]
    return results


@scenario
def distributed_by_the_user(process: Process) -> Any:
    results: dict[str, Any] = {}
    wrapped: nn.Module = DistributedDataParallel(seeded(GPT))
    sharded = fully_shard(seeded(GPT), mesh=init_device_mesh("cpu", (process.world_size,)))
    for name, model in (("ddp", wrapped), ("fsdp", sharded)):
        known = is_placed(model)
        with logged() as lines:
            put(model, process, name)
        set_gradient_sync(model, False)
        loss_of(model, share(process, tokens(4))).backward()
        gradient = next(model.parameters()).grad
        apart = gradient is None or not alike(process, gradient)
        set_gradient_sync(model, True)
        loss_of(model, share(process, tokens(4))).backward()
        results[name] = [known, len(lines), apart, alike(process, next(model.parameters()).grad)]
    return results


@scenario
def refused(process: Process) -> Any:
    def partly() -> nn.Module:
        model = seeded(GPT)
        model.blocks[1] = DistributedDataParallel(model.blocks[1])
        return put(model, process)

    def tensor_parallel() -> nn.Module:
        model = seeded(GPT)
        mesh = init_device_mesh("cpu", (process.world_size,))
        parallelize_module(model.blocks[0].up, mesh, ColwiseParallel())
        return put(model, process)

    def with_gradients() -> nn.Module:
        model = seeded(GPT)
        loss_of(model, tokens(2)).backward()
        return put(model, process)

    def zeroed() -> nn.Module:
        model = seeded(GPT)
        loss_of(model, tokens(2)).backward()
        model.zero_grad(set_to_none=False)
        return put(model, process)

    def scalar() -> nn.Module:
        model = seeded(GPT)
        model.temperature = nn.Parameter(torch.tensor(1.0))
        return put(model, process, "fsdp")

    def mixed() -> nn.Module:
        model = seeded(GPT)
        model.blocks[0].up.half()
        return put(model, process, "fsdp")

    def unlike() -> nn.Module:
        return put(GPT(blocks=2 + process.rank), process)

    def frozen_apart() -> nn.Module:
        model = seeded(GPT)
        model.blocks[0].requires_grad_(process.rank == 0)
        return put(model, process, "fsdp")

    functions = (
        partly,
        tensor_parallel,
        with_gradients,
        zeroed,
        scalar,
        mixed,
        unlike,
        frozen_apart,
    )
    return {function.__name__: refusal(function) for function in functions}
