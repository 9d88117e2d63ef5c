"""One rank of bench/parity.py: trains every case on all ranks, and alone, and compares weights.

    python parity_job.py FRAMEWORK CASES.json RESULT.json

Rank 0 also trains each case in one process, by hand: as it is, and with every batch cut into N
chunks whose gradients are added up. The first is the truth, the second shows how far rounding
alone leads away from it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

GLOBAL_BATCH = 12  # divisible by 2, 3 and 4
SYMBOLS, TIME, WIDTH = 20, 6, 16
EPOCHS = 2
MAX_NORM = 0.05
ACCUMULATE = 4


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    strategy: str  # ddp, fsdp
    optimizer: str  # SGD, AdamW
    cell: str
    precision: str  # float64, float32, bf16

    @property
    def accumulate(self) -> int:
        return ACCUMULATE if self.cell in ("accumulation", "token-weighted") else 1

    @property
    def by_tokens(self) -> bool:
        return self.cell == "token-weighted"

    def samples(self, ranks: int) -> int:
        """A last batch of which one rank gets a single sample, or six full batches: a window and a half."""
        if self.cell == "uneven last batch":
            return 2 * GLOBAL_BATCH + (ranks - 1) * (GLOBAL_BATCH // ranks) + 1
        return 6 * GLOBAL_BATCH


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        # A bias of the keys has no gradient but rounding, which AdamW would blow up to full size.
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.mlp(x)


class Net(nn.Module):
    """Symbols [batch, time] to logits [batch, time, symbol]."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.symbol = nn.Embedding(SYMBOLS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.batch_norm = nn.BatchNorm1d(WIDTH) if batch_norm else None
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.symbol(x)
        for block in self.blocks:
            x = block(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x)


class Sequences(Dataset[dict[str, Tensor]]):
    """Symbols, and labels of which all but the first few are ignored where lengths vary."""

    def __init__(self, count: int, vary: bool) -> None:
        draw = torch.Generator().manual_seed(5)
        self.x = torch.randint(0, SYMBOLS, (count, TIME), generator=draw)
        self.y = torch.randint(0, SYMBOLS, (count, TIME), generator=draw)
        if vary:
            lengths = torch.randint(1, TIME + 1, (count, 1), generator=draw)
            self.y[torch.arange(TIME) >= lengths] = -100

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


def make(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(3)
    model = Net(batch_norm=case.cell == "BatchNorm in eval")
    if model.batch_norm is not None:  # statistics as after some training
        model.batch_norm.running_mean.normal_()
        model.batch_norm.running_var.uniform_(0.5, 2)
        model.eval()
    model.to(torch.float64 if case.precision == "float64" else torch.float32)
    if case.optimizer == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = None
    if case.cell == "scheduler":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, optimizer, scheduler


def loss_of(model: nn.Module, batch: dict[str, Tensor], reduction: str) -> Tensor:
    logits = model(batch["x"])
    return F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction=reduction)


def num_tokens(batch: dict[str, Tensor]) -> Tensor:
    return (batch["y"] != -100).sum()


# -- one process, by hand -------------------------------------------------------------------


def alone(case: Case, ranks: int, chunks: int, divide_after: bool = False) -> dict[str, Tensor]:
    """The weights one process trains, each batch in `chunks` parts.

    Args:
        divide_after: each part's loss is its own mean (or sum) and the gradients are divided
            once they are added up, as between ranks; else the losses are divided beforehand.
    """
    model, optimizer, scheduler = make(case)
    data = Sequences(case.samples(ranks), case.by_tokens)
    half = case.precision == "bf16"
    factor = chunks if divide_after else 1
    for _ in range(EPOCHS):
        for window in windows(DataLoader(data, GLOBAL_BATCH), case.accumulate):
            items = int(sum(num_tokens(batch) for batch in window))
            for batch in window:
                for part, share in parts(batch, chunks):
                    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                        logits = model(part["x"])
                    loss = F.cross_entropy(
                        logits.to(torch.float32 if half else logits.dtype).flatten(0, 1),
                        part["y"].flatten(),
                        reduction="sum" if case.by_tokens else "mean",
                    )
                    if not case.by_tokens:
                        loss = loss * (share * factor / len(window))
                    elif not divide_after:
                        loss = loss / items
                    loss.backward()
            if divide_after:
                for p in model.parameters():
                    p.grad /= items if case.by_tokens else factor
            if case.cell == "clipping":
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
    return dict(model.state_dict())


def windows(loader: Any, size: int) -> Iterator[list[dict[str, Tensor]]]:
    window = []
    for batch in loader:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def parts(batch: dict[str, Tensor], chunks: int) -> Iterator[tuple[dict[str, Tensor], float]]:
    """A batch in chunks of the ranks' size, and each one's share of the samples."""
    size, each = len(batch["x"]), GLOBAL_BATCH // chunks
    for start in range(0, size, each):
        part = {name: value[start : start + each] for name, value in batch.items()}
        yield part, len(part["x"]) / size


# -- the frameworks -------------------------------------------------------------------------


def train_engine(case: Case, ranks: int) -> dict[str, Any]:
    from diag import Engine, FSDPOptions

    engine = Engine(
        strategy=case.strategy,
        mixed_precision="bf16" if case.precision == "bf16" else "no",
        gradient_accumulation_steps=case.accumulate,
        even_batches=case.cell != "uneven last batch",
        fsdp=FSDPOptions(wrap_classes=("Block",)),
        cpu=True,
    )
    data = Sequences(case.samples(ranks), case.by_tokens)
    model, optimizer, scheduler = make(case)
    model, optimizer, scheduler, loader = engine.prepare(
        model, optimizer, scheduler, DataLoader(data, GLOBAL_BATCH // ranks)
    )
    for _ in range(EPOCHS):
        for batch in loader:
            with engine.accumulate(model):
                if case.by_tokens:
                    engine.backward(loss_of(model, batch, "sum"), num_items=num_tokens(batch))
                else:
                    engine.backward(loss_of(model, batch, "mean"))
                if case.cell == "clipping":
                    engine.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                optimizer.zero_grad()
    return engine.get_state_dict(model)


def train_accelerate(case: Case, ranks: int) -> dict[str, Any]:
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision="bf16" if case.precision == "bf16" else "no",
        gradient_accumulation_steps=case.accumulate,
        dataloader_config=DataLoaderConfiguration(even_batches=case.cell != "uneven last batch"),
        cpu=True,
    )
    data = Sequences(case.samples(ranks), case.by_tokens)
    model, optimizer, scheduler = make(case)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, GLOBAL_BATCH // ranks)
    )
    if scheduler is not None:
        scheduler = accelerator.prepare(scheduler)

    def act() -> None:
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()

    def by_tokens(window: list[dict[str, Tensor]]) -> None:
        """Its documentation's recipe: count ahead, synchronize by hand, undo its two divisions."""
        items = accelerator.gather(sum(num_tokens(batch) for batch in window)).sum()
        for number, batch in enumerate(window, 1):
            with accelerator.no_sync(model) if number < len(window) else nullcontext():
                loss = loss_of(model, batch, "sum")
                accelerator.backward(loss * case.accumulate * ranks / items)
        act()

    for _ in range(EPOCHS):
        if case.by_tokens:
            for window in windows(loader, case.accumulate):
                by_tokens(window)
            continue
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, batch, "mean"))
                if case.cell == "clipping" and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                act()
    return dict(accelerator.unwrap_model(model).state_dict())


FRAMEWORKS: dict[str, Callable[[Case, int], dict[str, Any]]] = {
    "engine": train_engine,
    "accelerate": train_accelerate,
}


# -- comparing ------------------------------------------------------------------------------


def deviation(weights: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest ‖w − truth‖ / ‖truth‖ of any tensor."""
    return max(
        ((weights[name].double() - value.double()).norm() / value.double().norm()).item()
        for name, value in truth.items()
        if value.is_floating_point()
    )


def measure(case: Case, framework: str, ranks: int, rank: int) -> dict[str, Any]:
    row: dict[str, Any] = {**vars(case), "ranks": ranks, "framework": framework}
    weights = FRAMEWORKS[framework](case, ranks)
    if rank == 0:
        truth = alone(case, ranks, chunks=1)
        row["deviation"] = deviation(weights, truth)
        row["chunked"] = max(
            deviation(alone(case, ranks, chunks=ranks, divide_after=after), truth)
            for after in (False, True)
        )
    return row


def main() -> None:
    framework, cases, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = []
    for case in json.loads(cases.read_text()):
        rows.append(measure(Case(**case), framework, ranks, rank))
        gc.collect()
    if rank == 0:
        result.write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
