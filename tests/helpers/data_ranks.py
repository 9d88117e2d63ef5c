"""Rank target: loaders that need the other ranks: agreed seeds, and rank 0 reading for all."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from diag.engine.data import PreparedLoader, prepare_loader
from diag.engine.data.post import hand_out
from diag.engine.options import DataOptions
from diag.engine.process import Process, join_job
from diag.errors import DiagError
from diag.probes import ProbeConfig, install
from diag.record.schema import PHASES
from helpers.loaders import Numbers, Observer, SizedStream, Stream, values
from helpers.ranks import say

WORLD = 3
SLOW_S = 0.04


def prepare(loader: DataLoader[Any], process: Process, **options: Any) -> PreparedLoader:
    return prepare_loader(loader, process, DataOptions(**options), Observer())


def agreed_seeds(process: Process) -> Any:
    """Ranks whose generators stand apart draw one order."""
    torch.manual_seed(100 + process.rank)
    random.seed(process.rank)
    shuffle = prepare(DataLoader(Numbers(12), batch_size=2, shuffle=True), process)
    weighted = WeightedRandomSampler([1.0] * 12, 12)
    drawn = prepare(DataLoader(Numbers(12), batch_size=2, sampler=weighted), process)
    return [values(shuffle), values(drawn), shuffle.state_dict()["seed"]]


def one_rank_alone(process: Process) -> Any:
    """A loader that is not dispatched asks nobody once it is prepared."""
    loader = prepare(DataLoader(Numbers(12), batch_size=2, shuffle=True), process)
    return len(values(loader)) if process.rank == 1 else None


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "stream": lambda: DataLoader(Stream(23), batch_size=3),
    "stream, a worker": lambda: DataLoader(Stream(23), batch_size=3, num_workers=1),
    "stream, dropping": lambda: DataLoader(Stream(23), batch_size=3, drop_last=True),
    "stream of batches": lambda: DataLoader(Stream(7), batch_size=None),
    "empty stream": lambda: DataLoader(Stream(0), batch_size=3),
    "map": lambda: DataLoader(Numbers(23), batch_size=3, shuffle=True),
    "map, workers": lambda: DataLoader(Numbers(23), batch_size=3, num_workers=1, shuffle=True),
}


def watched(loader: PreparedLoader) -> list[Any]:
    return [
        (
            batch.tolist() if isinstance(batch, torch.Tensor) else batch,
            loader.local_samples,
            loader.global_samples,
            loader.remainder,
            loader.end_of_loader,
            loader.end_on_some_rank,
            loader.batches_yielded,
        )
        for batch in loader
    ]


def dispatched_as_sharded(process: Process) -> Any:
    """Rank 0 reading for all gives every rank what it would have read itself."""
    differing = []
    for (name, make), even, split in product(LOADERS.items(), (True, False), (True, False)):
        if (split and name == "stream of batches") or ("worker" in name and even is split):
            continue
        options: dict[str, Any] = {"even_batches": even, "split_batches": split}
        both = [
            prepare(make(), process, data_seed=3, dispatch_batches=dispatch, **options)
            for dispatch in (True, False)
        ]
        seen = [[watched(loader) for _ in range(2)] for loader in both]
        if seen[0] != seen[1]:
            differing.append([name, even, split, *seen])
    return differing


def only_rank_0_reads(process: Process) -> Any:
    dataset = Numbers(23)
    loader = prepare(DataLoader(dataset, batch_size=2), process, dispatch_batches=True)
    by_default = prepare(DataLoader(Stream(9), batch_size=2), process)
    return [len(values(loader)), len(dataset.read), type(by_default._source).__name__]


def taken_up_again(process: Process) -> Any:
    answers = []
    for make in (LOADERS["map"], LOADERS["map, workers"], LOADERS["stream"]):
        loader = prepare(make(), process, data_seed=3, dispatch_batches=True)
        order = values(loader)
        loader = prepare(make(), process, data_seed=3, dispatch_batches=True)
        for _ in islice(loader, 1):  # left early, on every rank
            pass
        other = prepare(make(), process, data_seed=4, dispatch_batches=True)
        other.load_state_dict(loader.state_dict())
        answers.append([values(other), order[1:]])
    return answers


class BreaksAt(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(6)
        raise OSError("the disk is gone")


def failing_reader(process: Process) -> Any:
    seen: list[Any] = []
    loader = prepare(DataLoader(BreaksAt(), batch_size=1), process)
    try:
        seen.extend((batch.tolist(), loader.end_of_loader) for batch in loader)
    except (DiagError, OSError) as error:
        seen.append([type(error).__name__, str(error)])
    return seen


def data_pipe(process: Process) -> Any:
    """Torch's DataPipes divide themselves."""
    from torch.utils.data.datapipes.iter import IterableWrapper

    loader = prepare(DataLoader(IterableWrapper(range(9)).sharding_filter(), batch_size=2), process)
    return [(batch.tolist(), loader.end_of_loader) for batch in loader]


def endless(process: Process) -> Any:
    loader = prepare(DataLoader(Stream(None), batch_size=2), process)
    first = [batch.tolist() for batch in islice(loader, 2)]
    return [first, [batch.tolist() for batch in islice(loader, 1)]]


def generators_in_step(process: Process) -> Any:
    torch.manual_seed(1)
    for dataset in (Stream(9), Numbers(9)):
        list(
            prepare(DataLoader(dataset, batch_size=1), process, dispatch_batches=True, data_seed=1)
        )
    return torch.rand(()).item()


class Odd:
    """Something of the user's own with tensors inside."""

    def __init__(self) -> None:
        self.inner = {"mask": torch.tensor([True, False])}


def odd_messages(process: Process) -> Any:
    def message(rank: int) -> Any:
        return {
            "rank": rank,
            "none": None,
            "text": ["a" * rank, "b"],
            "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
            "empty": torch.zeros(0, 3),
            "strided": torch.arange(12).view(3, 4).t()[::2],
            "complex": torch.tensor([1 + 2j]).conj(),
            "sparse": torch.eye(2).to_sparse(),
            "grad": torch.ones(rank + 1, requires_grad=True),
            "own": Odd(),
        }

    messages = [message(rank) for rank in range(WORLD)] if process.is_main else None
    got, want = hand_out(process, messages, process.device), message(process.rank)
    unlike = [
        key
        for key, value in want.items()
        if isinstance(value, torch.Tensor)
        and (
            got[key].dtype != value.dtype
            or not torch.equal(got[key].detach().to_dense(), value.detach().to_dense())
        )
    ]
    plain = [got[key] == want[key] for key in ("rank", "none", "text")]
    own_memory = got["strided"].untyped_storage().nbytes() <= 12 * 8
    return [unlike, plain, got["own"].inner["mask"].tolist(), own_memory]


class SlowStream(SizedStream):
    def __iter__(self) -> Iterator[Any]:
        for at in super().__iter__():
            if at % WORLD == 0:
                time.sleep(SLOW_S)
            yield float(at)


def watch_training(process: Process, loader: PreparedLoader, place: Path) -> Any:
    """What a training leaves in the record."""
    session = install(ProbeConfig(place, process.rank, process.rank, 0, WORLD, 0, "cpu"))
    rows: list[tuple[Any, ...]] = []
    session.capture.writer.append_step = rows.append
    handed = train(loader)
    failures = dict(session.failures.first)
    session.finish("script")
    return {
        "samples": [row[10] for row in rows],
        "handed": handed[1:],  # the first step is not a whole one
        "mean_ms": {
            phase: sum(row[3 + at] for row in rows[1:]) / len(rows[1:]) / 1e6
            for at, phase in enumerate(PHASES)
        },
        "failures": failures,
    }


def train(loader: PreparedLoader) -> list[int | None]:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handed = []
    for batch in loader:
        if loader.end_on_some_rank:
            break
        model(batch[:, None].float()).sum().backward()
        optimizer.step()
        handed.append(loader.local_samples)
    return handed


def seen_by_the_probes(process: Process, directory: Path) -> Any:
    """On rank 0, which reads for all, and on one of the others."""
    loaders = {
        "dispatched": prepare(DataLoader(SlowStream(20), batch_size=1), process),
        "read by each": prepare(
            DataLoader(SlowStream(20), batch_size=1), process, dispatch_batches=False
        ),
        "map-style": prepare(DataLoader(Numbers(19), batch_size=1), process, even_batches=False),
    }
    if process.is_last:
        return {name: train(loader) for name, loader in loaders.items()}
    return {
        name: watch_training(process, loader, directory / f"{name}{process.rank}")
        for name, loader in loaders.items()
    }


CHECKS: dict[str, Callable[[Process], Any]] = {
    "agreed seeds": agreed_seeds,
    "one rank alone": one_rank_alone,
    "dispatched as sharded": dispatched_as_sharded,
    "only rank 0 reads": only_rank_0_reads,
    "taken up again": taken_up_again,
    "failing reader": failing_reader,
    "endless": endless,
    "data pipe": data_pipe,
    "generators in step": generators_in_step,
    "odd messages": odd_messages,
}


def main() -> None:
    directory = Path(sys.argv[1])
    process = join_job(cpu=True)
    np.random.seed(process.rank)
    answer = {name: check(process) for name, check in CHECKS.items()}
    answer["probes"] = seen_by_the_probes(process, directory)
    say(directory, process.rank, answer)
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
