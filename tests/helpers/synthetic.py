"""Synthetic runs whose true accounting is known: for coverage and for false alarms.

A `World` is a random process; `simulate` draws a record from it, `truth` gives the population
values of every term of the identity. The process knows nothing of the estimators: ranks run
through segments of local work, meet at synchronizations, and are released a little apart.

Times are milliseconds here, nanoseconds in the panels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from diag.record.schema import LOCAL_PHASES, PHASES
from diag.reports.panel import Panel, Waits

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
NUM_LOCAL = len(LOCAL_PHASES)
# The order in which a step runs through its phases, from release to release.
ORDER = ("optimizer", "host", "data", "copy", "forward", "backward")
# After which phase of ORDER an inner synchronization may sit: DDP's buffers, a loss all-reduce.
INNER_SITES = ("copy", "forward")


@dataclass(frozen=True)
class World:
    """A training run and its one-rank baseline, as a stationary process.

    Attributes:
        phases_ms: [R, 6] mean local phases by rank, in the order of LOCAL_PHASES.
        baseline_ms: [6] the one rank's.
        q: share of the baseline's step that is this run's ideal step.
        common, own: standard deviation of the log of what all ranks share, and of each rank's
            and phase's own noise (lognormal, mean one).
        correlation: of both from step to step (AR(1) of the normal below the lognormal).
        rotating_ms, rotating_phase: in each step one random rank is late by this, there.
        inner: sites of inner synchronizations, out of INNER_SITES.
        transfer_ms: mean cost of each synchronization once its last rank has come.
        skew_ms: mean lateness of a rank's release.
        gap_ms: mean time after each release that no phase covers.
    """

    phases_ms: F64
    baseline_ms: F64
    q: float
    steps: int
    baseline_steps: int
    common: float = 0.0
    own: float = 0.0
    correlation: float = 0.0
    rotating_ms: float = 0.0
    rotating_phase: str = "host"
    inner: tuple[str, ...] = ()
    transfer_ms: float = 0.0
    skew_ms: float = 0.0
    gap_ms: float = 0.0

    @property
    def ranks(self) -> int:
        return len(self.phases_ms)


def draw_world(rng: np.random.Generator) -> World:
    """A world at random, every cause absent in a good part of the draws."""
    ranks = int(rng.integers(2, 9))
    step = float(np.exp(rng.uniform(np.log(20), np.log(300))))
    share = np.array([0.04, 0.02, 0.28, 0.52, 0.06, 0.08]) * rng.uniform(0.3, 1.7, NUM_LOCAL)
    typical = step * share / share.sum()
    q = float(rng.choice([1.0, 1 / ranks]))
    excess = typical * rng.choice([0.0, 1.0], NUM_LOCAL) * rng.uniform(-0.1, 0.3, NUM_LOCAL)
    phases = np.tile(typical, (ranks, 1))
    slow = rng.choice(ranks, size=int(rng.choice([0, 0, 1, 1, 2])), replace=False)
    for rank in slow:
        size = step * np.exp(rng.uniform(np.log(0.003), np.log(0.3)))
        phases[rank, rng.integers(NUM_LOCAL)] += size
    return World(
        phases_ms=phases,
        baseline_ms=(typical - excess) / q,
        q=q,
        steps=int(rng.integers(60, 401)),
        baseline_steps=int(rng.integers(60, 401)),
        common=float(rng.choice([0.0, 1.0]) * rng.uniform(0.005, 0.08)),
        own=float(rng.uniform(0.003, 0.08)),
        correlation=float(rng.uniform(0.0, 0.6)),
        rotating_ms=step * float(rng.choice([0.0, 1.0]) * rng.uniform(0.02, 0.3)),
        rotating_phase=str(rng.choice(["host", "backward"])),
        inner=tuple(site for site in INNER_SITES if rng.random() < 0.4),
        transfer_ms=step * float(np.exp(rng.uniform(np.log(0.002), np.log(0.2)))),
        skew_ms=step * float(rng.uniform(0, 0.002)),
        gap_ms=step * float(rng.uniform(0, 0.003)),
    )


def noise_only(world: World) -> World:
    """The same world without a slow rank and without rotation: noise is all that differs."""
    typical = np.sort(world.phases_ms, axis=0)[0]
    return replace(world, phases_ms=np.tile(typical, (world.ranks, 1)), rotating_ms=0.0)


def simulate(world: World, rng: np.random.Generator) -> tuple[Panel, Panel]:
    """A record of the run and one of its baseline, independent of each other."""
    steps = _steps(world, rng)
    run = _panel(world, steps, rng, samples=8.0 * world.q)
    alone = replace(
        world, phases_ms=world.baseline_ms[None], steps=world.baseline_steps, rotating_ms=0.0,
        inner=(), transfer_ms=0.0, skew_ms=0.0,
    )  # fmt: skip
    baseline = _panel(alone, _steps(alone, rng), rng, samples=8.0)
    return run, baseline


def truth(world: World, rng: np.random.Generator, draws: int = 40_000) -> dict[str, float]:
    """Population values in ms: the terms, `step`, `ideal`; and `speedup`, `efficiency`.

    Means are exact. What depends on the distribution of maxima comes from `draws` independent
    steps of the same process, which have the same means as correlated ones; only differences
    within a step are averaged, so that common noise does not blur them.
    """
    mean = world.phases_ms.copy()
    mean[:, LOCAL_PHASES.index(world.rotating_phase)] += world.rotating_ms / world.ranks
    middle = (world.ranks - 1) // 2
    typical = np.sort(mean, axis=0)[middle]
    worst = int(mean.sum(axis=1).argmax())
    slowest = mean[worst].sum()
    sim = _steps(replace(world, steps=draws, correlation=0.0), rng)
    own = sim.local.sum(axis=-1)
    mean_max = slowest + float((own.max(axis=1) - own[:, worst]).mean())
    inner = float((sim.makespan_free - own.max(axis=1)).mean())
    transfer = float((sim.makespan - sim.makespan_free).mean()) - world.gap_ms
    excess = dict(zip(LOCAL_PHASES, typical - world.q * world.baseline_ms, strict=True))
    terms = {
        "compute": excess.pop("forward") + excess.pop("backward"),
        **excess,
        "straggler": slowest - typical.sum(),
        "jitter": mean_max - slowest,
        "serialization": inner,
        "transfer": transfer,
        "residual": world.gap_ms * (1 - world.q),
    }
    baseline_step = world.baseline_ms.sum() + world.gap_ms
    step = mean_max + inner + transfer + world.gap_ms
    efficiency = world.q * baseline_step / step
    return {k: float(v) for k, v in terms.items()} | {
        "step": step,
        "ideal": float(world.q * baseline_step),
        "efficiency": float(efficiency),
        "speedup": float(world.ranks * efficiency),
    }


@dataclass(frozen=True)
class _Steps:
    """Relative to the completion of the previous step's last synchronization, in ms."""

    local: F64  # [S, R, 6]
    gap: F64  # [S, R] before the step's start
    arrive: list[F64]  # per synchronization, [S, R]
    leave: list[F64]  # [S, R]
    makespan: F64  # [S] until the last synchronization completes
    makespan_free: F64  # [S] the same with a network that costs nothing


def _steps(world: World, rng: np.random.Generator) -> _Steps:
    shape = (world.steps, world.ranks)
    local = _local(world, rng)
    skew = rng.exponential(1.0, (len(world.inner) + 1, *shape)) * world.skew_ms
    gap = rng.exponential(1.0, shape) * world.gap_ms
    start = np.vstack([np.zeros(world.ranks), skew[-1, :-1]]) + gap
    clock, free = start.copy(), np.zeros(shape)
    arrive, leave = [], []
    sites = (*world.inner, ORDER[-1])
    for phases, late in zip(_segments(sites), skew, strict=True):
        clock = clock + local[:, :, phases].sum(axis=-1)
        free = free + local[:, :, phases].sum(axis=-1)
        arrive.append(clock)
        cost = world.transfer_ms * np.exp(0.2 * rng.standard_normal(world.steps) - 0.02)
        complete = clock.max(axis=1) + cost
        clock = complete[:, None] + late
        leave.append(clock)
        free = np.repeat(free.max(axis=1, keepdims=True), world.ranks, axis=1)
    return _Steps(local, gap, arrive, leave, complete, free[:, 0])


def _segments(sites: tuple[str, ...]) -> list[list[int]]:
    """Positions in LOCAL_PHASES of the phases before each synchronization."""
    segments: list[list[int]] = [[]]
    for phase in ORDER:
        segments[-1].append(LOCAL_PHASES.index(phase))
        if phase in sites:
            segments.append([])
    return segments[:-1]


def _local(world: World, rng: np.random.Generator) -> F64:
    shape = (world.steps, world.ranks, NUM_LOCAL)
    own = np.exp(world.own * _autoregressive(rng, shape, world.correlation) - world.own**2 / 2)
    shared = _autoregressive(rng, (world.steps, 1, 1), world.correlation)
    common = np.exp(world.common * shared - world.common**2 / 2)
    late = np.zeros(shape)
    who = rng.integers(world.ranks, size=world.steps)
    late[np.arange(world.steps), who, LOCAL_PHASES.index(world.rotating_phase)] = world.rotating_ms
    return np.asarray(world.phases_ms * own * common + late)


def _autoregressive(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> F64:
    """Standard normal, correlated along the first axis."""
    values = rng.standard_normal(shape)
    if rho:
        values[1:] *= np.sqrt(1 - rho**2)
        for step in range(1, shape[0]):
            values[step] += rho * values[step - 1]
    return values


def _panel(world: World, steps: _Steps, rng: np.random.Generator, samples: float) -> Panel:
    """Lay the steps out on every rank's own clock, in whole nanoseconds."""
    before = np.cumsum(steps.makespan) - steps.makespan
    offset = rng.integers(10**9, 10**15, world.ranks)
    starts = np.vstack([np.zeros(world.ranks), steps.leave[-1][:-1] - steps.makespan[:-1, None]])
    start = _ns(before[:, None] + starts + steps.gap) + offset
    arrive = [_ns(before[:, None] + a) + offset for a in steps.arrive]
    leave = [_ns(before[:, None] + x) + offset for x in steps.leave]
    shape = (world.ranks, world.steps)
    phases = np.zeros((*shape, len(PHASES)), np.int64)
    phases[:, :, [PHASES.index(p) for p in LOCAL_PHASES]] = _ns(steps.local).transpose(1, 0, 2)
    exposed = sum(after - at for at, after in zip(arrive, leave, strict=True))
    phases[:, :, PHASES.index("exposed_comm")] = exposed.T
    phases[:, :, PHASES.index("host")] += (leave[-1] - start).T - phases.sum(axis=2)  # rounding
    num = len(arrive)
    waits = tuple(
        Waits(
            key=np.arange(world.steps * num),
            step=np.repeat(np.arange(world.steps), num),
            issue_ns=(at := np.stack([a[:, r] for a in arrive], axis=1).ravel()),
            wait_ns=at,
            end_ns=np.stack([x[:, r] for x in leave], axis=1).ravel(),
            world=np.ones(world.steps * num, np.bool_),
        )
        for r in range(world.ranks)
    )
    return Panel(
        ranks=tuple(range(world.ranks)),
        index=np.arange(world.steps),
        start_ns=np.ascontiguousarray(start.T),
        end_ns=np.ascontiguousarray(leave[-1].T),
        phases_ns=phases,
        samples=np.full(shape, samples),
        tokens=np.full(shape, np.nan),
        flags=np.zeros(shape, np.int64),
        probe_ns=np.zeros(shape, np.int64),
        waits=waits,
    )


def _ns(ms: F64) -> I64:
    return np.rint(np.asarray(ms) * 1e6).astype(np.int64)
