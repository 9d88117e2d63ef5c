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
from collections.abc import Iterator

import torch
import torch.distributed as dist
from charlm_model import (
    CharGPT,
    Windows,
    arguments,
    loss_of,
    parameters_of,
    read_standard_library,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset


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
    size = parameters_of(model)
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
    args = arguments(__doc__)

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
