"""Stand-ins for transformers, datasets and evaluate, which Accelerate's external scripts import.

Just enough that the scripts import and train something small, without the network: a linear
classifier over bags of words, a few dozen samples, the accuracy.
"""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from diag.engine.seeding import set_seed

VOCABULARY, LENGTH, TRAIN, VALIDATION = 16, 2, 52, 70


class Batch(UserDict[str, Tensor]):
    """A tokenizer's output: a mapping that moves."""

    def to(self, device: torch.device) -> Batch:
        for key, value in self.data.items():
            self.data[key] = value.to(device)
        return self


class Classifier(nn.Module):
    @classmethod
    def from_pretrained(cls, name: str, return_dict: bool = True) -> Classifier:
        return cls()

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(VOCABULARY, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.head(self.words(input_ids))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class Accuracy:
    def __init__(self) -> None:
        self._right: list[Tensor] = []

    def add_batch(self, predictions: Tensor, references: Tensor) -> None:
        self._right.append(predictions == references)

    def compute(self) -> dict[str, float]:
        right = torch.cat(self._right)
        self._right.clear()
        return {"accuracy": right.double().mean().item(), "count": float(len(right))}


def get_dataloaders(
    accelerator: Any, batch_size: int = 16, model_name: str = ""
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """In the place of the checkpointing script's function of this name."""
    return (
        DataLoader(_samples(TRAIN), shuffle=True, collate_fn=_collate, batch_size=batch_size),
        DataLoader(_samples(VALIDATION), collate_fn=_collate, batch_size=32),
    )


def _samples(count: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(count)
    words = torch.randint(VOCABULARY, (count, LENGTH), generator=random)
    return [{"input_ids": one, "labels": (one[0] % 2)} for one in words]


def _collate(samples: list[dict[str, Tensor]]) -> Batch:
    return Batch({key: torch.stack([one[key] for one in samples]) for key in samples[0]})


def linear_schedule(optimizer: Any, num_warmup_steps: int, num_training_steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_training_steps))


@contextmanager
def installed() -> Iterator[None]:
    """Let the three libraries' names be imported while the block runs."""
    names = {
        "transformers": {
            "AutoModelForSequenceClassification": Classifier,
            "AutoTokenizer": None,
            "get_linear_schedule_with_warmup": linear_schedule,
            "set_seed": set_seed,
        },
        "datasets": {"load_dataset": None},
        "evaluate": {"load": lambda *names: Accuracy()},
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
