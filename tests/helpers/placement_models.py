"""Small models of the shapes that placement must know: blocks, tied weights, buffers, RNNs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 11  # odd, so that two ranks hold unequal parts


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class GPT(nn.Module):
    """Tied embeddings, weights initialised by `_init_weights`.

    Args:
        inline: the constructor also writes some weights in a way of its own.
    """

    def __init__(self, width: int = 6, blocks: int = 3, inline: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.gain = Gain()
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.apply(self._init_weights)
        for block in self.blocks if inline else ():
            nn.init.normal_(block.down.weight, std=0.01)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.gain(x))

    def score(self, tokens: Tensor) -> Tensor:
        """Another method that computes, without calling the model."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.gain(x).square().mean()


class Gain(nn.Module):
    """One element: with two ranks the second holds none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))
        self.register_buffer("steps", torch.empty(2, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, 0.5, 1.5)
        self.steps.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Normed(nn.Module):
    """BatchNorm, whose buffers change in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.cells = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(tokens))[0])


class Masked(nn.Module):
    """What its constructor alone can fill: nothing tells how to repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("mask", torch.tril(torch.ones(3, 3)))
        self.register_buffer("chosen", torch.ones(3, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Meddling(GPT):
    """Its own reset writes the blocks', too."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def tokens(rows: int, seed: int = 0, length: int = 5) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross entropy of the next token."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
