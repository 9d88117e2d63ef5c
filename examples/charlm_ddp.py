"""A small character-level GPT, trained by hand with DistributedDataParallel.

The text is the source of Python's own standard library: real data that every machine has.
Each rank takes a batch of its own, so more ranks read more text per step (weak scaling).

    python examples/charlm_ddp.py                          one process
    torchrun --nproc-per-node 2 examples/charlm_ddp.py     two, by torch's own launcher
    diag run --gpus 2 examples/charlm_ddp.py               two, recorded and explained
"""

from __future__ import annotations

import argparse
import gc
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

NUM_SYMBOLS = 128  # ASCII; every other character is read as "?"


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """A text cut into windows of `context` characters, each with the characters that follow."""

    def __init__(self, symbols: Tensor, context: int) -> None:
        self.symbols, self.context = symbols, context

    def __len__(self) -> int:
        return (len(self.symbols) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.context
        window = self.symbols[start : start + self.context + 1].long()
        return window[:-1], window[1:]


def read_standard_library() -> tuple[Tensor, Tensor]:
    """Text to train on and text to validate on (every tenth file), as uint8 symbols."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))

    def symbols(part: list[Path]) -> Tensor:
        text = "\n".join(file.read_text("utf-8", "replace") for file in part)
        return torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8)

    return symbols([file for i, file in enumerate(files) if i % 10]), symbols(files[::10])


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on its normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """Symbols [batch, time] to the logits of the symbols that follow [batch, time, symbol]."""

    def __init__(self, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(NUM_SYMBOLS, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.symbol(x) + self.place(places))))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean nats per character; guessing among all symbols alike gives ln(128) = 4.85."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def endless(loader: DataLoader, sampler: DistributedSampler) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after the other, each epoch in a new order."""
    epoch = 0
    while True:
        sampler.set_epoch(epoch)  # without it, every epoch repeats the order of the first
        yield from loader
        epoch += 1


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """The validation loss over all ranks' parts: the same number on every rank."""
    model.eval()
    total = torch.zeros(2, device=device)  # sum of the batches' losses, number of batches
    for x, y in loader:
        loss = loss_of(model, x.to(device), y.to(device))
        total += torch.stack([loss, torch.ones_like(loss)])
    model.train()
    if dist.is_initialized():
        dist.all_reduce(total)
    return (total[0] / total[1]).item()


def train(args: argparse.Namespace, device: torch.device) -> None:
    launched = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if launched else (0, 1)

    def load(data: Dataset, shuffle: bool) -> tuple[DataLoader, DistributedSampler]:
        sampler = DistributedSampler(data, ranks, rank, shuffle, args.seed, drop_last=True)
        return DataLoader(data, args.batch_size, sampler=sampler, drop_last=True), sampler

    text, held_out = (Windows(symbols, args.context) for symbols in read_standard_library())
    batches = endless(*load(text, shuffle=True))
    spread = range(0, len(held_out), max(1, len(held_out) // (8 * args.batch_size * ranks)))
    validation, _ = load(Subset(held_out, spread), shuffle=False)  # about 8 batches per rank

    torch.manual_seed(args.seed)
    model: nn.Module = CharGPT(args.context, args.layers, args.width, args.heads).to(device)
    size = sum(p.numel() for p in model.parameters())
    if launched:
        model = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    if rank == 0:
        print(f"{size:,} parameters, {len(text.symbols):,} characters, {ranks} x {device.type}")

    for step, (x, y) in zip(range(1, args.steps + 1), batches, strict=False):
        loss = loss_of(model, x.to(device), y.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # Reading a loss waits for the device, so it is not read in every step.
        if rank == 0 and (step == 1 or step % 10 == 0):
            print(f"step {step:4}  loss {loss.item():.3f}", flush=True)
        if step % args.eval_every == 0 or step == args.steps:
            held_out_loss = evaluate(model, validation, device)  # every rank takes part
            if rank == 0:
                print(f"step {step:4}  validation loss {held_out_loss:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8, help="windows per rank and step")
    parser.add_argument("--context", type=int, default=128, help="characters per window")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=50, metavar="STEPS")
    args = parser.parse_args()

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:  # set by torchrun and by diag run
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(args, device)
    if dist.is_initialized():
        gc.collect()  # destroying the group under a DDP module that still lives can abort
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
