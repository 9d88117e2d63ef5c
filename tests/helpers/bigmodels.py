"""Small models with all that makes dispatching hard, and how much memory tensors hold."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

VOCABULARY, WIDTH, LENGTH = 40, 16, 6


class Layer(nn.Module):
    """A residual block whose inner projection is used without being called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.register_buffer("scale", torch.full((width,), 0.5))

    def forward(self, x: torch.Tensor, cache: dict[str, torch.Tensor]) -> torch.Tensor:
        cache[f"layer{len(cache)}"] = x
        hidden = nn.functional.linear(self.norm(x), self.inner.weight, self.inner.bias)
        return x + self.scale * self.outer(torch.relu(hidden))


class TinyLM(nn.Module):
    """Embedding, own parameter, layers, an LSTM, batch norm, and a head tied to the embedding."""

    def __init__(self, num_layers: int = 4, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(num_layers))
        self.memory = nn.LSTM(width, width, batch_first=True)
        self.batch_norm = nn.BatchNorm1d(LENGTH)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.arange(LENGTH) % 2 == 0, persistent=False)

    def forward(
        self, tokens: torch.Tensor, cache: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        cache = {} if cache is None else cache
        x = self.embed(tokens) + self.place
        for layer in self.layers:
            x = layer(x, cache)
        x = self.batch_norm(self.memory(x)[0]) * self.mask[:, None]
        return {"logits": self.head(x)}


def tiny_lm(**sizes: int) -> TinyLM:
    torch.manual_seed(0)
    model = TinyLM(**sizes).eval()
    model.batch_norm.running_mean = torch.randn(LENGTH)
    return model


def tokens(batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (batch, LENGTH), generator=generator)


def save_whole(model: nn.Module, path: Path) -> Path:
    """The model's state in one file, a tied weight once, as `save_model` and transformers do."""
    save_file(_untied(model), path)
    return path


def save_sharded(model: nn.Module, folder: Path, num_shards: int = 3) -> Path:
    """The model's state in several files and their index."""
    state = _untied(model)
    names = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    weight_map = {key: names[i % num_shards] for i, key in enumerate(state)}
    for name in names:
        save_file({k: v for k, v in state.items() if weight_map[k] == name}, folder / name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _untied(model: nn.Module) -> dict[str, torch.Tensor]:
    named = {id(t): (name, t) for name, t in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor.detach().contiguous() for name, tensor in reversed(named.values())}


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes behind `tensors`, each storage once; meta tensors have none."""
    held = {t.untyped_storage().data_ptr(): t for t in tensors if not t.is_meta and t.numel()}
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def alive_bytes() -> int:
    """Bytes of all tensors of this process."""
    return tensor_bytes([o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)])


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Bytes of all tensors alive whenever a large module's forward is about to return."""
    seen: list[int] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, (Layer, nn.LSTM, nn.Embedding)):
            seen.append(alive_bytes())

    handle = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
