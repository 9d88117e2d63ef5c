"""DDP or FSDP: the arithmetic, and the words that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from diag.engine import amounts, torch_private
from diag.engine.options import DDPOptions
from diag.engine.placement import choose_strategy, free_bytes
from diag.engine.process import Process

MIB = 1 << 20
GPU = torch.device("cuda", 0)  # a name only


def job(size: int = 4, device: torch.device = GPU) -> Process:
    return Process(0, 0, size, size, device, "nccl" if size > 1 else None)


def model(mib: int = 1, device: str = "cpu") -> nn.Linear:
    """Parameters of so many MiB."""
    return nn.Linear(256, mib * 1024, bias=False, device=device)


def make(kind: Callable[..., Optimizer], **options: object) -> Callable[[nn.Module], Optimizer]:
    return lambda module: kind(module.parameters(), **options)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (make(torch.optim.SGD), 0),
        (make(torch.optim.SGD, momentum=0.9), 1),
        (make(torch.optim.AdamW), 2),
        (make(torch.optim.Adam, amsgrad=True), 3),
        (make(torch.optim.RMSprop), 1),
        (make(torch.optim.RMSprop, momentum=0.9, centered=True), 3),
        (make(torch.optim.Adagrad), 1),
        (make(torch.optim.Adafactor), 0),
        (make(torch.optim.LBFGS, history_size=3), 6),
    ],
)
def test_what_ddp_needs_counts_the_optimizers_state_by_its_class(
    optimizer: Callable[[nn.Module], Optimizer], copies: int
) -> None:
    module = model()
    choice = choose_strategy([module], [optimizer(module)], job(), free_bytes=1 << 40)
    assert choice.needed == (3 + copies) * MIB  # parameters, gradients, DDP's buckets


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop,
             torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam,
             torch.optim.RAdam, torch.optim.Rprop, torch.optim.ASGD],
)  # fmt: skip
def test_the_copies_assumed_are_those_torch_keeps(kind: type[Optimizer]) -> None:
    module = model()
    optimizer = make(kind)(module)
    module(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values()]
    kept = [v for v in kept if isinstance(v, torch.Tensor) and v.numel() > 1]
    choice = choose_strategy([module], [optimizer], job(), free_bytes=0)
    assert choice.needed == (3 + len(kept)) * MIB


def test_frozen_parameters_have_no_gradients_and_views_save_the_buckets() -> None:
    module = nn.Sequential(model(), model(3).requires_grad_(False))
    optimizer = torch.optim.AdamW(module[0].parameters())
    needed = choose_strategy([module], [optimizer], job(), 0).needed
    assert needed == (4 + 1 + 1 + 2) * MIB
    views = DDPOptions(gradient_as_bucket_view=True)
    assert choose_strategy([module], [optimizer], job(), 0, views).needed == needed - MIB


def test_ddp_while_it_fits_beside_the_activations() -> None:
    module = model(10)
    optimizer = torch.optim.AdamW(module.parameters())
    limit = int(50 * MIB / 0.6)  # 10 of parameters, gradients and buckets each, 20 of state
    fits = choose_strategy([module], [optimizer], job(), limit + 8)
    assert (fits.strategy, fits.available) == ("ddp", limit + 8)
    assert fits.why == (
        "strategy DDP, since the model fits on each rank: 50.0 MiB (parameters 10.0 MiB, "
        "gradients 10.0 MiB, DDP's buckets 10.0 MiB, AdamW's state 20.0 MiB) of 83.3 MiB; 40% of "
        "it is left to activations, an assumption."
    )
    does_not = choose_strategy([module], [optimizer], job(), limit - 8)
    assert does_not.strategy == "fsdp"
    assert does_not.why == (
        "strategy FSDP: with DDP each rank would need 50.0 MiB (parameters 10.0 MiB, gradients 10.0 MiB, "
        "DDP's buckets 10.0 MiB, AdamW's state 20.0 MiB), more than 50.0 MiB of its 83.3 MiB; 40% "
        "of it is left to activations, an assumption. Sharded over 4 ranks it is 10.0 MiB each."
    )


def test_what_not_even_fsdp_can_hold() -> None:
    choice = choose_strategy([model(100)], [], job(2), 10 * MIB)
    assert choice.strategy == "fsdp"
    assert choice.why.endswith("each, which is too much as well: expect to run out of memory.")
    assert "AdamW's state (no optimizer given yet) 200.0 MiB" in choice.why


def test_an_unknown_optimizer_is_said_to_be_assumed() -> None:
    class Shampoo(torch.optim.Optimizer):
        def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
            super().__init__(parameters, {})

    module = model()
    choice = choose_strategy([module], [Shampoo(module.parameters())], job(), 1 << 30)
    assert "Shampoo's state (2 copies assumed) 2.0 MiB" in choice.why


def test_what_lies_on_the_device_already_is_available_to_it() -> None:
    cpu = torch.device("cpu")
    module = model()
    module(torch.ones(1, 256)).sum().backward()
    process = job(2, cpu)
    assert choose_strategy([module], [], process, 5).available == 2 * MIB + 5
    assert choose_strategy([model(device="meta")], [], process, 5).available == 5
    assert choose_strategy([module], [], job(2), 5).available == 5


def test_tied_weights_count_once() -> None:
    module = nn.Sequential(model(), model())
    module[1].weight = module[0].weight
    assert choose_strategy([module, module[0]], [], job(), 0).needed == 5 * MIB


def test_one_process_and_a_torch_without_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_strategy([model()], [], job(1), 0).strategy == "none"
    monkeypatch.setattr(torch_private, "runs_fsdp", lambda device: False)
    choice = choose_strategy([model()], [], job(2, torch.device("cpu")), 0)
    assert choice.strategy == "ddp"
    assert "cannot run FSDP on the CPU" in choice.why


def test_a_containers_limit_counts_and_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "memory_limit", lambda: (100, 40))
    one = Process(0, 0, 1, 3, torch.device("cpu"), None)
    assert free_bytes(one) == 20
    monkeypatch.setattr(amounts, "memory_limit", lambda: None)
    assert free_bytes(one) > 1 << 20
