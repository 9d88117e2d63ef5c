"""A small character-level GPT on one GPU or many: the lines that differ from single-GPU code are marked.

Each rank takes a batch of its own, so more ranks read more text per step (weak scaling).
`charlm_ddp.py` does the same by hand.

    python examples/charlm.py                one process
    diag run --gpus 2 examples/charlm.py     two, recorded and explained
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

import torch
from charlm_model import (
    CharGPT,
    Windows,
    arguments,
    loss_of,
    parameters_of,
    read_standard_library,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from diag import Engine  # <- added


def endless(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


@torch.no_grad()
def evaluate(engine: Engine, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The mean loss over the validation text, the same number on every rank."""
    model.eval()
    total = torch.zeros(2, device=engine.device)  # sum of the batches' losses, number of batches
    for x, y in loader:
        loss = loss_of(model, x, y)
        total += torch.stack([loss, torch.ones_like(loss)])
    model.train()
    total = engine.reduce(total, "sum")  # <- added
    return (total[0] / total[1]).item()


def train(args: argparse.Namespace) -> None:
    engine = Engine()  # <- added
    text, held_out = (Windows(symbols, args.context) for symbols in read_standard_library())
    loader = DataLoader(text, args.batch_size, shuffle=True, drop_last=True)
    spread = range(0, len(held_out), max(1, len(held_out) // (16 * args.batch_size)))
    validation = DataLoader(Subset(held_out, spread), args.batch_size, drop_last=True)

    torch.manual_seed(args.seed)
    model = CharGPT(args.context, args.layers, args.width, args.heads)
    size = parameters_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    model, optimizer, loader, validation = engine.prepare(  # <- instead of .to(device)
        model, optimizer, loader, validation
    )
    ranks = f"{engine.num_processes} x {engine.device.type}"
    engine.print(f"{size:,} parameters, {len(text.symbols):,} characters, {ranks}")

    for step, (x, y) in zip(range(1, args.steps + 1), endless(loader), strict=False):
        loss = loss_of(model, x, y)
        engine.backward(loss)  # <- instead of loss.backward()
        engine.clip_grad_norm_(model.parameters(), 1.0)  # <- instead of nn.utils.clip_grad_norm_
        optimizer.step()
        optimizer.zero_grad()
        # Reading a loss waits for the device, so it is not read in every step.
        if step == 1 or step % 10 == 0:
            engine.print(f"step {step:4}  loss {loss.item():.3f}", flush=True)
        if step % args.eval_every == 0 or step == args.steps:
            held_out_loss = evaluate(engine, model, validation)
            engine.print(f"step {step:4}  validation loss {held_out_loss:.3f}", flush=True)
    engine.end_training()  # <- added


if __name__ == "__main__":
    train(arguments(__doc__))
