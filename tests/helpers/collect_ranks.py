"""What each rank sees of the collectives; `python -m helpers.collect_ranks DIRECTORY [cuda]` as 3 ranks.

Every scenario returns what JSON can hold; the test compares. None asserts: a rank that left early
would leave the others waiting.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from diag.engine import collect, control
from diag.engine.logs import get_logger
from diag.engine.process import Process, join_job
from diag.engine.seeding import set_seed
from diag.errors import DiagError
from helpers.ranks import say

Scenario = Callable[[Process, Path], Any]
SCENARIOS: list[Scenario] = []

Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Output:
    loss: torch.Tensor
    logits: list[torch.Tensor]
    cache: None = None


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


def refusal(function: Callable[[], Any]) -> list[str]:
    """[slug, sentence] of the DiagError `function` raises."""
    try:
        function()
    except DiagError as error:
        return [error.slug, error.what]
    return ["accepted", ""]


def loader(remainder: int, samples: int | None) -> Any:
    return SimpleNamespace(remainder=remainder, local_samples=samples)


# --- gather, reduce, broadcast, pad


@scenario
def gather_scalars(process: Process, _: Path) -> Any:
    value = torch.tensor(float(process.rank), requires_grad=True)
    gathered = collect.gather(process, value)
    return [gathered.tolist(), list(gathered.shape), gathered.requires_grad]


@scenario
def gather_nest(process: Process, _: Path) -> Any:
    r = float(process.rank)
    kept: defaultdict[str, Any] = defaultdict(list)
    kept["p"] = Point(torch.tensor([r]), torch.tensor([[r, -r]]))
    nest = {"out": Output(torch.tensor(r), [torch.tensor([r])]), "kept": kept, "none": None}
    got = collect.gather(process, nest)
    out = got["out"]
    return {
        "loss": out.loss.tolist(),
        "logits": out.logits[0].tolist(),
        "cache": out.cache,
        "point": [type(got["kept"]["p"]).__name__, got["kept"]["p"].y.tolist()],
        "factory": got["kept"].default_factory is list,
        "none": got["none"],
        "input_untouched": nest["out"].loss.ndim == 0,
    }


@scenario
def gather_dtypes(process: Process, _: Path) -> Any:
    kinds = ["bool", "uint8", "int16", "uint16", "int64", "float16", "bfloat16", "float8_e4m3fn"]
    answers = {}
    for kind in kinds:
        dtype = getattr(torch, kind)
        gathered = collect.gather(process, torch.tensor([process.rank, 1]).to(dtype))
        answers[kind] = [gathered.dtype == dtype, gathered.double().tolist()]
    conjugate = torch.tensor([complex(process.rank, 1)]).conj()
    answers["complex64"] = [torch.view_as_real(collect.gather(process, conjugate)).tolist()]
    return answers


@scenario
def gather_layouts(process: Process, _: Path) -> Any:
    transposed = torch.arange(6).view(3, 2).t() + 10 * process.rank
    empty = collect.gather(process, torch.empty(0, 4))
    return [collect.gather(process, transposed).tolist(), list(empty.shape)]


@scenario
def reduce_all(process: Process, _: Path) -> Any:
    r = process.rank
    value = torch.tensor([r + 1.0, 2.0], requires_grad=True)
    results = {
        kind: collect.reduce(process, value, kind).tolist()
        for kind in ("sum", "mean", "max", "min", "none")
    }
    results["scaled"] = collect.reduce(process, value, "mean", scale=0.5).tolist()
    results["default_is_sum"] = collect.reduce(process, value).tolist()
    results["input"] = value.tolist()
    return results


@scenario
def reduce_dtypes(process: Process, _: Path) -> Any:
    r = process.rank
    half = torch.tensor([30000.0], dtype=torch.float16)
    # 256 + 1 + 1 is 258 in float32; added up in bfloat16 it stays 256.
    tiny = torch.tensor([256.0 if r == 0 else 1.0], dtype=torch.bfloat16)
    results = {
        "int_mean": collect.reduce(process, torch.tensor([r, 1]), "mean"),
        "count": collect.reduce(process, torch.tensor([True, r == 0]), "sum"),
        "any": collect.reduce(process, torch.tensor([r == 1, False]), "max"),
        "uint8": collect.reduce(process, torch.tensor([200], dtype=torch.uint8), "sum"),
        "int16_max": collect.reduce(process, torch.tensor([r], dtype=torch.int16), "max"),
        "half": collect.reduce(process, half, "mean"),
        "bfloat16": collect.reduce(process, tiny, "sum"),
    }
    return {k: [str(v.dtype).removeprefix("torch."), v.tolist()] for k, v in results.items()}


@scenario
def broadcast_in_place(process: Process, _: Path) -> Any:
    base = torch.full((2, 3), float(process.rank), requires_grad=True)
    strided = torch.arange(6, dtype=torch.int16).view(2, 3).t() * (process.rank + 1)
    returned = collect.broadcast(process, {"a": base, "b": strided}, from_rank=1)
    return [base.tolist(), strided.tolist(), returned["a"] is base, base.requires_grad]


@scenario
def pad(process: Process, _: Path) -> Any:
    r = process.rank
    ragged = torch.ones(2, r + 1, dtype=torch.int64)
    nest = {"ids": ragged, "flat": torch.ones(2)}
    last = collect.pad_across_processes(process, nest, dim=1, pad_index=-100)
    first = collect.pad_across_processes(process, ragged, dim=-1, pad_first=True)
    rows = collect.pad_across_processes(process, torch.full((3 - r,), float(r)))
    return [last["ids"].tolist(), last["flat"].tolist(), first.tolist(), rows.tolist()]


@scenario
def many_leaves(process: Process, _: Path) -> Any:
    # More than fit in the first message of the comparison.
    leaves = [torch.ones(index % 5 + (process.rank if index == 39 else 0)) for index in range(40)]
    padded = collect.pad_across_processes(process, leaves)
    return [len(leaf) for leaf in padded]


@scenario
def objects(process: Process, _: Path) -> Any:
    r = process.rank
    values = [{"from": r}, r] if r == 2 else [None, None]
    return {
        "lists": collect.gather_object(process, [r] * r),
        "dicts": collect.gather_object(process, {"rank": r}),
        "words": collect.gather_object(process, "ab"),
        "points": collect.gather_object(process, Point(r, 0)),
        "broadcast": collect.broadcast_object_list(process, values, from_rank=2),
    }


# --- ranks that disagree


@scenario
def disagreements(process: Process, _: Path) -> Any:
    r = process.rank
    wide = {"ids": torch.ones(1, 5 + (r == 2)), "x": torch.ones(1)}
    extra = {"a": torch.ones(1)} | ({"b": torch.ones(1)} if r == 1 else {})
    kinds = torch.ones(2, dtype=torch.float64 if r == 0 else torch.float32)
    deep = torch.ones(1, 5) if r == 0 else torch.ones(1, 1, 6)
    return {
        "gather": refusal(lambda: collect.gather(process, wide, check=True)),
        "reduce": refusal(lambda: collect.reduce(process, kinds, check=True)),
        "broadcast": refusal(lambda: collect.broadcast(process, extra, check=True)),
        "pad": refusal(lambda: collect.pad_across_processes(process, {"t": deep}, dim=0)),
        "metrics": refusal(lambda: collect.gather_for_metrics(process, wide, None)),
        "alike": refusal(lambda: collect.gather(process, {"a": torch.ones(2)}, check=True)),
        "afterwards": collect.gather(process, torch.tensor([r])).tolist(),
    }


# --- gather_for_metrics: 11 samples in batches of 2 for 3 ranks leave 5 real ones in the last 6


def padded_batch(rank: int) -> torch.Tensor:
    return torch.tensor([[6, 7], [8, 9], [10, 0]][rank])


@scenario
def metrics_padded_tail(process: Process, _: Path) -> Any:
    batch, last = padded_batch(process.rank), loader(5, 2)
    return {
        "tail": collect.gather_for_metrics(process, batch, last).tolist(),
        "no_loader": collect.gather_for_metrics(process, batch, None).tolist(),
        "full": collect.gather_for_metrics(process, batch, loader(-1, 2)).tolist(),
        "unknown_size": collect.gather_for_metrics(process, batch, loader(5, None)).tolist(),
        "rows": list(collect.gather_for_metrics(process, batch[:, None].expand(2, 7), last).shape),
    }


@scenario
def metrics_scalars(process: Process, _: Path) -> Any:
    """One value per rank for batches of 2: of 3 real samples rank 1 has one, rank 2 none."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger("diag.engine.metrics").addHandler(handler)
    value = torch.tensor([2.0, 4.0, 6.0][process.rank])
    kept = {
        str(real): collect.gather_for_metrics(process, value, loader(real, 2)).tolist()
        for real in (2, 4, 6, -1)
    }
    quiet = told.getvalue()
    partial = [
        collect.gather_for_metrics(process, {"loss": value}, loader(3, 2))["loss"].tolist()
        for _ in "ab"
    ]
    matrix = collect.gather_for_metrics(process, torch.eye(3), loader(4, 2))
    unknown = collect.gather_for_metrics(process, value, loader(2, None))
    logging.getLogger("diag.engine.metrics").removeHandler(handler)
    return [kept, quiet, partial, told.getvalue(), list(matrix.shape), unknown.tolist()]


@scenario
def metrics_uneven(process: Process, _: Path) -> Any:
    """even_batches=False: the last batch is 2, 2 and 1 samples, or none at all on a rank."""
    own = padded_batch(process.rank)[: 2 if process.rank < 2 else 1]
    none = torch.empty(0, 4) if process.rank == 1 else torch.full((2, 4), float(process.rank))
    return [
        collect.gather_for_metrics(process, own, loader(-1, len(own))).tolist(),
        collect.gather_for_metrics(process, none, None)[:, 0].tolist(),
    ]


@scenario
def metrics_objects(process: Process, _: Path) -> Any:
    r, last = process.rank, loader(5, 2)
    batch = padded_batch(r)
    words = [f"w{index}" for index in batch.tolist()]
    ragged = [torch.full((index,), r) for index in (1, r)]
    mixed = collect.gather_for_metrics(process, {"text": words, "id": batch, "n": r}, last)
    return {
        "words": collect.gather_for_metrics(process, words, last),
        "pairs": collect.gather_for_metrics(process, (words, words), last),
        "mixed": [mixed["text"], mixed["id"].tolist(), mixed["n"]],
        "ragged": [
            one.tolist()
            for one in collect.gather_for_metrics(process, ragged, last, use_gather_object=True)
        ],
        "rows": [
            one.item()
            for one in collect.gather_for_metrics(process, batch, last, use_gather_object=True)
        ],
    }


# --- control, seeds, logs


@scenario
def main_first(process: Process, directory: Path) -> Any:
    path = directory / "order.txt"
    with control.main_process_first(process):
        if process.is_main:
            time.sleep(0.1)
        with path.open("a") as file:
            file.write(str(process.rank))
    control.wait_for_everyone(process)
    return path.read_text()


@scenario
def main_first_failing(process: Process, _: Path) -> Any:
    try:
        with control.local_main_process_first(process):
            if process.is_local_main:
                raise OSError("disk full")
            return "went on"
    except OSError as error:
        return str(error)


@scenario
def only_on(process: Process, _: Path) -> Any:
    def rank(offset: int = 0) -> int:
        return process.rank + offset

    limited = [
        control.on_main_process(process, rank),
        control.on_local_main_process(process, rank),
        control.on_last_process(process, rank),
        control.on_process(process, rank, 1),
        control.on_local_process(process, rank, 1),
    ]
    printed = io.StringIO()
    with redirect_stdout(printed):
        control.print(process, "once", end="!")
    return [[one(offset=5) for one in limited], limited[0].__name__, printed.getvalue()]


@scenario
def trigger(process: Process, _: Path) -> Any:
    flag = control.Trigger()
    seen = [flag.check(process)]
    if process.rank == 2:
        flag.set()
    return [*seen, flag.check(process), flag.check(process)]


@scenario
def seeds(process: Process, _: Path) -> Any:
    same = set_seed(7), torch.rand(1).item()
    own = set_seed(7, device_specific=True), torch.rand(1).item()
    return [same, own]


@scenario
def logger(process: Process, directory: Path) -> Any:
    log = get_logger("helpers.collect_ranks.job")
    # Ranks with different levels, as after `basicConfig` under `if is_main_process`.
    log.logger.setLevel("INFO" if process.rank != 1 else "ERROR")
    handler = logging.FileHandler(directory / "log.txt")
    handler.setFormatter(logging.Formatter("%(levelname)s %(funcName)s %(message)s"))
    log.logger.addHandler(handler)
    log.info("for all of %s", "us")
    dist.barrier()
    log.info("in turn", in_order=True)
    if process.rank == 2:
        log.error("alone", main_process_only=False)
    dist.barrier()
    for _ in range(2):
        log.warning_once("once")
    dist.barrier()
    log.logger.removeHandler(handler)
    handler.close()
    return (directory / "log.txt").read_text().splitlines()


@scenario
def ordered(process: Process, _: Path) -> Any:
    got = collect.gather(process, OrderedDict(b=torch.ones(1), a=torch.ones(1)))
    return [type(got).__name__, list(got)]


def join_on_one_gpu() -> Process:
    """All ranks on the first GPU, over NCCL (2.30 or newer), as no launcher would place them."""
    os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return Process(rank, rank, ranks, ranks, device, "nccl")


def main() -> None:
    directory = Path(sys.argv[1])
    process = join_on_one_gpu() if "cuda" in sys.argv[2:] else join_job(cpu=True)
    answers: dict[str, Any] = {}
    for run in SCENARIOS:
        try:
            answers[run.__name__] = run(process, directory)
        except Exception as error:
            answers[run.__name__] = f"{type(error).__name__}: {error}"
    say(directory, process.rank, answers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
