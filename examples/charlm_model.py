"""The text and the model of both charlm examples; nothing here knows of several GPUs.

The text is the source of Python's own standard library: real data that every machine has.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

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


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def arguments(doc: str | None) -> argparse.Namespace:
    """The command line of both examples; `doc` begins with what --help says."""
    parser = argparse.ArgumentParser(description=re.split(r"[:.]\s", doc or "")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8, help="windows per rank and step")
    parser.add_argument("--context", type=int, default=128, help="characters per window")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=50, metavar="STEPS")
    return parser.parse_args()
