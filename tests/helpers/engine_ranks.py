"""What the Engine does on several ranks; `python -m helpers.engine_ranks DIRECTORY` as a rank.

Every scenario returns what JSON can hold, and none asserts: a rank that left early would leave
the others waiting. The test compares.
"""

from __future__ import annotations

import gc
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diag import Engine, FSDPOptions
from diag.engine import gradients
from diag.engine.process import join_job
from diag.errors import DiagError
from helpers.engine_training import (
    GLOBAL_BATCH,
    Case,
    Net,
    Sequences,
    Stream,
    alone,
    deviation,
    loss_of,
    together,
)
from helpers.ranks import say
from helpers.strategies import STRATEGIES

Scenario = Callable[[Path], Any]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


def exact_cases(ranks: int) -> dict[str, Case]:
    """Trainings that must equal one process's, by name. On 3 ranks those where 3 is special."""
    uneven: dict[str, Any] = {"even_batches": False}
    one_rank_has_one = (ranks - 1) * (GLOBAL_BATCH // ranks) + 1
    cases = {
        "accumulation with a tail": Case(batches=5, accumulate=2, epochs=2),
        "items, accumulated": Case(batches=5, accumulate=2, by_items=True),
        "uneven last batch": Case(rest=one_rank_has_one, epochs=2, options=uneven),
        "clipping": Case(batches=4, accumulate=2, max_norm=0.05),
    }
    if ranks == 3:
        return cases
    return cases | {
        "plain": Case(),
        "AdamW": Case(adam=True),
        "a stream's tail": Case(batches=5, accumulate=3, stream=True),
        "items": Case(by_items=True),
        "scheduler": Case(batches=4, accumulate=2, schedule=True),
        "uneven last batch, accumulated": Case(
            rest=one_rank_has_one, accumulate=3, options=uneven, adam=True
        ),
        "split batches": Case(accumulate=2, options={"split_batches": True}),
        "dispatched": Case(stream=True, options={"dispatch_batches": True}),
        "zero_grad first": Case(batches=4, accumulate=2, zero_grad_first=True),
        "synchronizing every micro-batch": Case(accumulate=2, options={"sync_each_batch": True}),
    }


@scenario
def exactness(_: Path) -> dict[str, float]:
    found = {}
    for name, case in exact_cases(dist.get_world_size()).items():
        truth = alone(case)
        for strategy in STRATEGIES:
            weights = together(case, strategy)
            found[f"{name}, {strategy}"] = deviation(weights, truth) if weights else 0.0
            gc.collect()
    return found


@scenario
def half_precision(_: Path) -> dict[str, float]:
    """How far bf16 leads from float32, and FSDP from DDP in it."""
    case = Case(dtype=torch.float32, options={"mixed_precision": "bf16"})
    truth = alone(Case(dtype=torch.float32))
    if "fsdp" not in STRATEGIES:
        return {}
    ddp, fsdp = (together(case, strategy) for strategy in STRATEGIES)
    return {"bf16": deviation(ddp, truth), "fsdp": deviation(fsdp, ddp)} if ddp else {}


@scenario
def joining(_: Path) -> dict[str, Any]:
    """Rank 0 alone has a last batch, of one sample."""

    def joined(engine: Engine, model: nn.Module) -> AbstractContextManager[Any]:
        return engine.join_uneven_inputs([model])

    options = {"even_batches": False}
    found: dict[str, Any] = {}
    for name, case in {
        "SGD": Case(rest=1, epochs=2, options=options),
        "AdamW": Case(rest=1, epochs=2, adam=True, schedule=True, options=options),
        # The batch that rank 0 has alone is a window of its own, and so is the one before.
        "accumulated": Case(rest=1, accumulate=2, windows=(2, 1, 1), options=options),
    }.items():
        weights = together(case, "ddp", joined)
        found[name] = deviation(weights, alone(case)) if weights else 0.0
    items = Case(rest=1, by_items=True, options=options)
    found["items"] = refusal(lambda: together(items, "ddp", joined))
    found["fsdp"] = refusal(lambda: together(Case(options=options), "fsdp", joined))
    return found


@scenario
def unjoined(_: Path) -> dict[str, Any]:
    """What is told before a rank would wait for ever: by the rank that has one batch more."""
    told = {}
    data: Any
    for strategy, data in (
        *((strategy, Sequences(GLOBAL_BATCH + 1)) for strategy in STRATEGIES),
        ("ddp, a stream", Stream(GLOBAL_BATCH + 1)),
    ):
        engine = Engine(
            strategy=strategy.partition(",")[0],  # type: ignore[arg-type]
            even_batches=False,
            dispatch_batches=False,
        )
        loader = DataLoader(data, GLOBAL_BATCH // engine.num_processes)
        model, loader = engine.prepare(Net(), loader)

        def train(engine: Any = engine, model: Any = model, loader: Any = loader) -> None:
            for batch in loader:
                engine.backward(loss_of(model, batch, by_items=False))

        told[strategy] = refusal(train)
        dist.barrier()
    return told


@scenario
def synchronization(_: Path) -> dict[str, Any]:
    """When gradients are alike on all ranks."""
    found: dict[str, Any] = {}
    for strategy in STRATEGIES:
        engine = Engine(strategy=strategy, gradient_accumulation_steps=2)  # type: ignore[arg-type]
        model, loader = engine.prepare(Net().double(), DataLoader(Sequences(48), 4))
        seen = []
        for batch, _ in zip(loader, range(2), strict=False):
            with engine.accumulate(model):
                engine.backward(loss_of(model, batch, by_items=False))
            seen.append([engine.sync_gradients, alike(engine, model)])
        model.zero_grad()
        batch = next(iter(loader))
        with engine.no_sync(model):
            with engine.no_sync(model):
                engine.backward(loss_of(model, batch, by_items=False))
            seen.append(["within no_sync", alike(engine, model)])
            loss = loss_of(model, batch, by_items=False)
        with engine.trigger_sync_in_backward(model):
            engine.backward(loss)
        seen.append(["triggered", alike(engine, model)])
        found[strategy] = seen
    return found


def alike(engine: Engine, model: nn.Module) -> bool | None:
    """Whether all ranks have the same gradients; None if this rank has none yet."""
    found = gradients.gradients(model.parameters())
    if not found:
        return None
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]
    flat = torch.cat([g.flatten() for g in whole])
    everyone = engine.gather(flat[None])
    return bool((everyone == everyone[0]).all())


@scenario
def overflow(_: Path) -> dict[str, Any]:
    """A gradient overflows on the last rank alone, in the second of three steps."""
    found: dict[str, Any] = {}
    for strategy in STRATEGIES:
        engine = Engine(
            strategy=strategy,  # type: ignore[arg-type]
            mixed_precision="fp16",
            scaler={"init_scale": 1024.0},
            fsdp=FSDPOptions(wrap_classes=("Block",)),
        )
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        loader = DataLoader(Sequences(3 * GLOBAL_BATCH), GLOBAL_BATCH // engine.num_processes)
        model, optimizer, schedule, loader = engine.prepare(model, optimizer, schedule, loader)
        seen = []
        for step, batch in enumerate(loader):
            loss = loss_of(model, batch, by_items=False)
            if step == 1 and engine.is_last_process:
                loss = loss * 1e38
            engine.backward(loss)
            norm = engine.clip_grad_norm_(model.parameters(), 1.0)
            engine.clip_grad_norm_(model.parameters(), 1.0)  # unscales no second time
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            seen.append([engine.optimizer_step_was_skipped, bool(torch.isfinite(norm))])
        assert engine.scaler is not None
        engine._parts()  # as a checkpoint would: settles the scale
        found[strategy] = {
            "seen": seen,
            "scale": engine.scaler.get_scale(),
            "rate": optimizer.param_groups[0]["lr"],
            "steps": engine.completed_steps,
            "finite": all(bool(torch.isfinite(p).all()) for p in local(model)),
        }
    return found


def local(model: nn.Module) -> Iterator[Tensor]:
    for p in model.parameters():
        yield p.to_local() if hasattr(p, "to_local") else p


@scenario
def norms(_: Path) -> dict[str, Any]:
    """The norm over all shards, and clipping by it and by value, against one process."""
    found: dict[str, Any] = {}
    truth = Net().double()
    batch = {name: value[:GLOBAL_BATCH] for name, value in vars(Sequences(GLOBAL_BATCH)).items()}
    loss_of(truth, batch, by_items=False).backward()
    for strategy in STRATEGIES:
        engine = Engine(strategy=strategy)  # type: ignore[arg-type]
        loader = DataLoader(Sequences(GLOBAL_BATCH), GLOBAL_BATCH // engine.num_processes)
        model, loader = engine.prepare(Net().double(), loader)
        for part in loader:
            engine.backward(loss_of(model, part, by_items=False))
        for kind in (1.0, 2.0, float("inf")):
            ours = engine.clip_grad_norm_(model.parameters(), 1e9, kind)
            expected = nn.utils.get_total_norm(gradients.gradients(truth.parameters()), kind)
            found[f"{strategy} {kind}"] = abs(ours.item() / expected.item() - 1)
        engine.clip_grad_value_(model.parameters(), 1e-3)
        largest = engine.clip_grad_norm_(model.parameters(), 1e9, float("inf")).item()
        found[f"{strategy} value"] = abs(largest / 1e-3 - 1)
    return found


@scenario
def adversaries(_: Path) -> dict[str, Any]:
    """Two models that take turns, each with a window of its own, equal to one process's."""

    def train(engine: Any, models: list[nn.Module], optimizers: list[Any], loader: Any) -> None:
        for batch in loader:
            for model, optimizer in zip(models, optimizers, strict=True):
                with engine.accumulate(model):
                    optimizer.zero_grad()
                    engine.backward(loss_of(model, batch, by_items=False))
                    optimizer.step()

    def parts() -> tuple[list[nn.Module], list[Any]]:
        models: list[nn.Module] = [Net(seed).double() for seed in (3, 4)]
        return models, [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]

    truth, theirs = parts()
    batches = list(DataLoader(Sequences(3 * GLOBAL_BATCH), GLOBAL_BATCH))
    for window in (batches[:2], batches[2:]):
        for model, optimizer in zip(truth, theirs, strict=True):
            optimizer.zero_grad()
            for batch in window:
                (loss_of(model, batch, by_items=False) / len(window)).backward()
            optimizer.step()
    found = {}
    for strategy in STRATEGIES:
        engine = Engine(strategy=strategy, gradient_accumulation_steps=2)  # type: ignore[arg-type]
        models, optimizers = parts()
        size = GLOBAL_BATCH // engine.num_processes
        loader = DataLoader(Sequences(3 * GLOBAL_BATCH), size)
        *prepared, loader = engine.prepare(*models, *optimizers, loader)
        train(engine, prepared[:2], prepared[2:], loader)
        for index, model in enumerate(models):
            weights = engine.get_state_dict(model)
            expected = dict(truth[index].state_dict())
            found[f"{strategy} {index}"] = deviation(weights, expected) if weights else 0.0
        found[f"{strategy} in one window"] = refusal(lambda e=engine: in_one_window(e))  # type: ignore[misc]
    return found


def in_one_window(engine: Engine) -> None:
    """Two models in one window, a backward each, and a tail that nobody knew of."""
    models: list[nn.Module] = [Net(seed) for seed in (3, 4)]
    loader = DataLoader(Stream(3 * GLOBAL_BATCH), GLOBAL_BATCH // engine.num_processes)
    *models, loader = engine.prepare(*models, loader)
    for batch in loader:
        with engine.accumulate(*models):
            for model in models:
                engine.backward(loss_of(model, batch, by_items=False))


@scenario
def preparing(_: Path) -> dict[str, Any]:
    """Apart, twice, late, by itself, and again in another engine."""
    found: dict[str, Any] = {}
    case = Case(epochs=2)
    truth = alone(case)
    batches = list(DataLoader(Sequences(case.samples), GLOBAL_BATCH))
    for strategy in STRATEGIES:
        engine = Engine(strategy=strategy, fsdp=FSDPOptions(wrap_classes=("Block",)))  # type: ignore[arg-type]
        model, optimizer, _ = case.parts()
        # One step in each process alone, the same everywhere: the momentum is there.
        loss_of(model, batches[0], by_items=False).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = (model, optimizer)
        optimizer = engine.prepare_optimizer(optimizer)
        model = engine.prepare(model)
        again = engine.prepare(optimizer, model, None, "text", 3)
        found[f"{strategy} same"] = again == (optimizer, model, None, "text", 3)
        found[f"{strategy} in place"] = before == (model, optimizer)
        size = GLOBAL_BATCH // engine.num_processes
        order = [*range(GLOBAL_BATCH, case.samples), *range(case.samples)]
        data = torch.utils.data.Subset(Sequences(case.samples), order)
        with logged() as said:
            for batch in engine.prepare(DataLoader(data, size)):
                engine.backward(loss_of(model, batch, by_items=False))
                optimizer.step()
                optimizer.zero_grad()
        found[f"{strategy} said"] = said()
        weights = engine.get_state_dict(model)
        found[f"{strategy} deviation"] = deviation(weights, truth) if weights else 0.0
        found[f"{strategy} steps"] = engine.completed_steps
        found[f"{strategy} forgotten"] = engine.free_memory(model, optimizer)
        other = Engine(strategy=strategy)  # type: ignore[arg-type]
        found[f"{strategy} elsewhere"] = other.prepare(optimizer) is optimizer
    return found


@scenario
def words(_: Path) -> dict[str, Any]:
    """What is said on the way, and refused."""
    engine = Engine()
    with redirect_stderr(io.StringIO()) as printed:
        model = engine.prepare(Net())
    found: dict[str, Any] = {
        "strategy": engine.strategy,
        "why": engine.why_strategy,
        "printed": printed.getvalue(),
    }
    stray = nn.Parameter(torch.zeros(2))
    optimizer = engine.prepare(torch.optim.SGD([*model.parameters(), stray], lr=0.1))
    batch = next(iter(engine.prepare(DataLoader(Sequences(24), 4))))
    with logged() as said:
        for _ in range(2):
            loss = loss_of(model, batch, by_items=False)
            engine.backward(loss * float("nan") if engine.is_last_process else loss)
            optimizer.step()
            optimizer.zero_grad()
    found["warned"] = said()
    frozen = Net().requires_grad_(False)
    found["frozen"] = refusal(
        lambda: engine.prepare(frozen, torch.optim.SGD(frozen.parameters(), lr=0.1))
    )
    found["teacher"] = engine.prepare(frozen) is frozen
    found["nothing to train"] = refusal(
        lambda: engine.backward(loss_of(frozen, batch, by_items=False))
    )
    return found


@contextmanager
def logged() -> Iterator[Callable[[], str]]:
    """What the engine's loggers say."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("diag")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield stream.getvalue
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@scenario
def states(directory: Path) -> dict[str, Any]:
    """Saved by one strategy, loaded by the other; and by the façade's own bookkeeping."""
    case = Case(schedule=True)

    def fresh(strategy: str) -> tuple[Any, Any, Any, Any, Any]:
        engine = Engine(
            strategy=strategy,  # type: ignore[arg-type]
            project_dir=directory,
            automatic_checkpoint_naming=True,
        )
        model, optimizer, schedule = case.parts()
        loader = DataLoader(Sequences(case.samples), GLOBAL_BATCH // engine.num_processes)
        return (engine, *engine.prepare(model, optimizer, schedule, loader))

    def train(engine: Any, model: Any, optimizer: Any, schedule: Any, batches: Any) -> None:
        for batch in batches:
            engine.backward(loss_of(model, batch, by_items=False))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    engine, model, optimizer, schedule, loader = fresh("ddp")
    train(engine, model, optimizer, schedule, loader)
    engine.save_state()
    train(engine, model, optimizer, schedule, loader)
    truth = engine.get_state_dict(model)
    found: dict[str, Any] = {}
    for strategy in STRATEGIES:
        engine, model, optimizer, schedule, loader = fresh(strategy)
        name = engine.load_state().name
        steps = engine.completed_steps
        train(engine, model, optimizer, schedule, loader)
        weights = engine.get_state_dict(model)
        found[strategy] = {
            "name": name,
            "steps": [steps, engine.completed_steps],
            "deviation": deviation(weights, truth) if truth else 0.0,
        }
    return found


def refusal(function: Callable[[], Any]) -> list[str]:
    """[slug, sentence] of the DiagError `function` raises."""
    try:
        function()
    except DiagError as error:
        return [error.slug, error.what]
    return ["accepted", ""]


def main() -> None:
    directory, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    process = join_job(cpu=True)
    found = {}
    for one in SCENARIOS:
        if not wanted or one.__name__ in wanted:
            found[one.__name__] = one(directory)
            gc.collect()
    say(directory, process.rank, found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
