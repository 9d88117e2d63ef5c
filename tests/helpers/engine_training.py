"""One small training, through the Engine on many ranks and by hand in one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diag import Engine, FSDPOptions

GLOBAL_BATCH = 12
SYMBOLS, TIME, WIDTH = 11, 4, 8
IGNORED = -100
Batch = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Symbols [batch, time] to logits [batch, time, symbol]."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.symbol = nn.Embedding(SYMBOLS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.symbol(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Sequences(Dataset[Batch]):
    """Symbols and labels; labels past a sequence's own length are to be ignored."""

    def __init__(self, count: int) -> None:
        draw = torch.Generator().manual_seed(5)
        self.x = torch.randint(0, SYMBOLS, (count, TIME), generator=draw)
        self.y = torch.randint(0, SYMBOLS, (count, TIME), generator=draw)
        lengths = torch.randint(1, TIME + 1, (count, 1), generator=draw)
        self.y[torch.arange(TIME) >= lengths] = IGNORED

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Batch:
        return {"x": self.x[index], "y": self.y[index]}


class Stream(IterableDataset[Batch]):
    """The same without a length."""

    def __init__(self, count: int) -> None:
        self.inner = Sequences(count)

    def __iter__(self) -> Iterator[Batch]:
        return (self.inner[index] for index in range(len(self.inner)))


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        batches, rest: full global batches in the data, and samples in one more.
        accumulate: batches to a window.
        windows: their sizes in one process, if they are not `accumulate` and a tail.
    """

    batches: int = 3
    rest: int = 0
    accumulate: int = 1
    by_items: bool = False
    max_norm: float | None = None
    schedule: bool = False
    stream: bool = False
    zero_grad_first: bool = False
    windows: tuple[int, ...] | None = None
    epochs: int = 1
    dtype: torch.dtype = torch.float64
    adam: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return self.batches * GLOBAL_BATCH + self.rest

    def data(self) -> Any:
        return Stream(self.samples) if self.stream else Sequences(self.samples)

    def parts(self) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = Net().to(self.dtype)
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(model.parameters(), lr=1e-2)
            if self.adam
            else torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))
        return model, optimizer, schedule if self.schedule else None


def loss_of(model: nn.Module, batch: Batch, by_items: bool) -> Tensor:
    """Per-sample losses averaged, or the sum over all labels that count."""
    logits = model(batch["x"])
    labels = batch["y"] if by_items else batch["y"].clamp(min=0)
    reduction = "sum" if by_items else "mean"
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)


def items_of(batch: Batch) -> Tensor:
    return (batch["y"] != IGNORED).sum()


def alone(case: Case) -> dict[str, Tensor]:
    """The weights one process trains, with nothing but torch."""
    model, optimizer, schedule = case.parts()
    for _ in range(case.epochs):
        loader = iter(DataLoader(Sequences(case.samples), GLOBAL_BATCH))
        sizes = iter(case.windows or itertools.repeat(case.accumulate))
        while window := list(itertools.islice(loader, next(sizes, 0))):
            items = sum(int(items_of(batch)) for batch in window)
            for batch in window:
                loss = loss_of(model, batch, case.by_items)
                (loss / (items if case.by_items else len(window))).backward()
            if case.max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), case.max_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            optimizer.zero_grad()
    return dict(model.state_dict())


Around = Callable[[Engine, nn.Module], AbstractContextManager[Any]]


def together(
    case: Case,
    strategy: str,
    around: Around = lambda *_: nullcontext(),
) -> dict[str, Any]:
    """The weights the Engine trains on all ranks, on rank 0."""
    engine: Any = Engine(
        strategy=strategy,  # type: ignore[arg-type]
        gradient_accumulation_steps=case.accumulate,
        fsdp=FSDPOptions(wrap_classes=("Block",)),
        **case.options,
    )
    split = case.options.get("split_batches")
    size = GLOBAL_BATCH if split else GLOBAL_BATCH // engine.num_processes
    model, optimizer, schedule = case.parts()
    schedule, loader, model, optimizer = engine.prepare(
        schedule, DataLoader(case.data(), size), model, optimizer
    )
    for _ in range(case.epochs):
        with around(engine, model):
            for batch in loader:
                _step(case, engine, model, optimizer, schedule, batch)
    weights: dict[str, Any] = engine.get_state_dict(model)
    return weights


def _step(
    case: Case, engine: Any, model: nn.Module, optimizer: Any, schedule: Any, batch: Batch
) -> None:
    with engine.accumulate(model):
        if case.zero_grad_first:
            optimizer.zero_grad()
        loss = loss_of(model, batch, case.by_items)
        engine.backward(loss, num_items=items_of(batch) if case.by_items else None)
        if case.max_norm is not None:
            engine.clip_grad_norm_(model.parameters(), case.max_norm)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if not case.zero_grad_first:
            optimizer.zero_grad()


def deviation(weights: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest ‖w − truth‖ / ‖truth‖ of any tensor."""
    return max(
        ((weights[name].double() - value.double()).norm() / value.double().norm()).item()
        for name, value in truth.items()
    )
