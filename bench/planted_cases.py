"""The cases of bench/planted.py: what is planted on whom, and what must be reported."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expected:
    """A term's planted size; `ranks` and `phase` where the plant has them."""

    term: str
    ms: float | None  # None: the run itself measures the truth and prints it
    ranks: tuple[int, ...] | None = None
    phase: str | None = None
    would_save: float | None = None


@dataclass(frozen=True)
class Case:
    name: str
    ranks: int
    model: str
    arguments: tuple[str, ...]
    causes: tuple[dict[str, Any], ...] = ()
    expected: tuple[Expected, ...] = ()  # the first one must lead
    finding: str | None = None
    checkpoint_s: float | None = None
    # Also run with nothing planted: what its terms say then is the machine's and the strategy's
    # own (FSDP2's cost over one process), and is taken off before comparing.
    control: bool = False
    link_mbit: int | None = None  # the loopback device's rate, in a network namespace of its own


def speed(step_ms: float) -> tuple[str, ...]:
    return ("--forward-ms", str(0.4 * step_ms), "--backward-ms", str(0.6 * step_ms))


class Draw:
    """The random choices of one run of the benchmark."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def ms(self, low: float = 15.0, high: float = 40.0) -> float:
        return round(self.rng.uniform(low, high), 1)

    def size(self) -> int:
        return self.rng.choice([2, 3, 4])

    def step(self) -> tuple[str, ...]:
        return speed(self.rng.choice([40.0, 60.0, 80.0]))


def slow(draw: Draw, phase: str, model: str, extra: tuple[str, ...] = ()) -> Case:
    ranks, ms = draw.size(), draw.ms()
    if model.endswith("fsdp"):
        # Ten collectives a step wait for the cores that the ranks share: the planted must be
        # larger than that floor, or it rightly does not lead.
        ms = draw.ms(35, 60)
    rank = draw.rng.randrange(ranks)
    cause = {"phase": phase, "ranks": [rank], "ms": ms}
    expected = Expected("straggler", ms, (rank,), phase, would_save=ms)
    also = " + loss all-reduce" if "--reduce-loss" in extra else ""
    also += ", 3 micro-batches" if "--accumulate" in extra else ""
    return Case(
        f"slow {phase}, {model}{also}", ranks, model, (*draw.step(), *extra), (cause,),
        (expected,), "slow-rank",
    )  # fmt: skip


def two_equally_slow(draw: Draw) -> Case:
    ms, pair = draw.ms(), tuple(sorted(draw.rng.sample(range(4), 2)))
    phase = draw.rng.choice(["forward", "backward", "data"])
    cause = {"phase": phase, "ranks": list(pair), "ms": ms}
    expected = Expected("straggler", ms, pair, phase, would_save=ms)
    return Case("two equally slow ranks", 4, "ddp", draw.step(), (cause,), (expected,), "slow-rank")


def each_in_another_phase(draw: Draw) -> Case:
    ms, phases = draw.ms(), draw.rng.sample(["data", "forward", "backward", "host"], 3)
    causes = tuple({"phase": p, "ranks": [r], "ms": ms} for r, p in enumerate(phases))
    expected = Expected("straggler", ms, (0, 1, 2), None, would_save=ms)
    return Case("each rank slow in another phase", 3, "ddp", draw.step(), causes, (expected,))


def each_in_another_block(draw: Draw) -> Case:
    """FSDP synchronizes in every block: the ranks wait for each other in turn."""
    ranks, ms = draw.rng.choice([2, 3]), draw.ms(20, 40)
    cause = {"phase": "own-forward", "ranks": list(range(ranks)), "ms": ms}
    expected = (
        Expected("serialization", (ranks - 1) * ms),
        Expected("compute", ms),
    )
    if ranks == 2:  # both are equally large: either may lead
        expected = (Expected("serialization", ms), Expected("compute", ms))
    arguments = (*draw.step(), "--blocks", str(ranks))
    return Case(
        "each rank slow in another block", ranks, "fsdp", arguments, (cause,), expected,
        control=True,
    )  # fmt: skip


def all_wait_for_data(draw: Draw) -> Case:
    ranks, ms = draw.size(), draw.ms()
    cause = {"phase": "data", "ranks": list(range(ranks)), "ms": ms}
    expected = Expected("data", ms, would_save=ms)
    return Case(
        "all ranks wait for data", ranks, "ddp", draw.step(), (cause,), (expected,), "data-bound"
    )


def exposed(draw: Draw) -> Case:
    """Gradients over a slow link; their true cost from interleaved no_sync steps.

    On an unthrottled loopback the copying itself takes the cores that backward computes on.
    """
    width = draw.rng.choice([400, 500, 600])
    arguments = (*speed(30.0), "--width", str(width), "--batch", "2", "--unsynced-blocks", "10")
    return Case(
        "exposed communication", 2, "ddp", arguments, (), (Expected("transfer", None),),
        "comm-bound", link_mbit=draw.rng.choice([600, 800, 1000]),
    )  # fmt: skip


def rotating(draw: Draw) -> Case:
    ranks, ms = draw.rng.choice([3, 4]), draw.ms(30, 60)
    phase = draw.rng.choice(["forward", "backward", "data"])
    cause = {"phase": phase, "ranks": [], "rotate": True, "ms": ms}
    systemic = {"forward": "compute", "backward": "compute", "data": "data"}[phase]
    part = ms / ranks
    expected = (
        Expected("jitter", ms - part, would_save=ms - part),
        Expected(systemic, part),
    )
    return Case("rotating jitter", ranks, "ddp", draw.step(), (cause,), expected, "jitter")


def every_k_steps(draw: Draw) -> Case:
    ranks, every = draw.size(), draw.rng.choice([4, 5, 8])
    ms = round(draw.ms(15, 30) * every, 1)
    cause = {"phase": "host", "ranks": [0], "ms": ms, "every": every}
    expected = Expected("straggler", ms / every, (0,), "host", would_save=ms / every)
    return Case(
        f"rank 0 works every {every} steps", ranks, "ddp", draw.step(), (cause,), (expected,),
        "rank0-work",
    )  # fmt: skip


def checkpoints(draw: Draw, steps: int) -> Case:
    every, ms = draw.rng.choice([15, 20]), round(draw.rng.uniform(300, 600), 1)
    cause = {"phase": "checkpoint", "ranks": [0], "ms": ms, "every": every}
    seconds = len(range(every, steps, every)) * ms / 1e3
    return Case(
        f"checkpoint on rank 0 every {every} steps", draw.size(), "ddp", draw.step(), (cause,),
        (), "rank0-work", seconds,
    )  # fmt: skip


def two_causes(draw: Draw) -> Case:
    ranks, first, second = draw.rng.choice([3, 4]), draw.ms(25, 40), draw.ms(12, 20)
    rank = draw.rng.randrange(ranks)
    causes = (
        {"phase": "backward", "ranks": [rank], "ms": first},
        {"phase": "data", "ranks": list(range(ranks)), "ms": second},
    )
    expected = (
        Expected("straggler", first, (rank,), "backward", would_save=first),
        Expected("data", second, would_save=second),
    )
    return Case("two causes at once", ranks, "ddp", draw.step(), causes, expected, "slow-rank")


def clean(draw: Draw) -> Iterator[Case]:
    for step in (20.0, 150.0):
        for model in ("ddp", "batchnorm", "fsdp", "engine-ddp"):
            yield Case(f"clean {step:.0f} ms, {model}", draw.size(), model, speed(step))


def all_cases(seed: int, steps: int) -> list[Case]:
    draw = Draw(seed)
    cases = list(clean(draw))
    accumulated = ("--accumulate", "3")
    cases += [slow(draw, p, "engine-ddp", accumulated) for p in ("data", "forward", "backward")]
    cases += [slow(draw, p, "engine-fsdp", accumulated) for p in ("data", "backward")]
    for model in ("ddp", "batchnorm", "fsdp"):
        cases += [slow(draw, p, model) for p in ("data", "forward", "backward", "host")]
    cases += [slow(draw, p, "ddp", ("--reduce-loss",)) for p in ("data", "backward")]
    cases += [
        two_equally_slow(draw), each_in_another_phase(draw), each_in_another_block(draw),
        all_wait_for_data(draw), exposed(draw), rotating(draw), every_k_steps(draw),
        checkpoints(draw, steps), two_causes(draw),
    ]  # fmt: skip
    return cases
