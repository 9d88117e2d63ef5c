"""Panels written by hand: local work in ms, synchronizations, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from diag.record.schema import PHASES
from diag.reports.panel import EXPOSED, Panel, Waits

NS = 1_000_000  # per ms
Segment = Mapping[str, float]  # phase to ms of local work before a synchronization


def synchronous(
    steps: Sequence[Sequence[Sequence[Segment]]],
    *,
    network: float = 0.0,
    offsets: Sequence[int] | None = None,
    samples: float = 8.0,
) -> Panel:
    """Ranks that work through segments and block together after each of them.

    steps[s][r] is rank r's list of segments in step s, the last of which ends the step. A
    synchronization costs `network` ms once its last rank has come, and releases all at once.
    offsets: of each rank's clock, ns.
    """
    ranks = range(len(steps[0]))
    offsets = offsets or [0] * len(ranks)
    phases = np.zeros((len(ranks), len(steps), len(PHASES)), np.int64)
    start = np.zeros(phases.shape[:2], np.int64)
    waits: list[list[tuple[int, int, int, int]]] = [[] for _ in ranks]
    now = key = 0
    for s, step in enumerate(steps):
        start[:, s] = now
        for segment in zip(*step, strict=True):
            arrive = [now + round(sum(work.values()) * NS) for work in segment]
            release = max(arrive) + round(network * NS)
            for r in ranks:
                for phase, ms in segment[r].items():
                    phases[r, s, PHASES.index(phase)] += round(ms * NS)
                phases[r, s, EXPOSED] += release - arrive[r]
                waits[r].append((key, s, arrive[r], release))
            now, key = release, key + 1
    shift = np.asarray(offsets, np.int64)[:, None]
    end = np.append(start[:, 1:], np.full((len(ranks), 1), now), axis=1)
    shape = start.shape
    return Panel(
        ranks=tuple(ranks),
        index=np.arange(len(steps)),
        start_ns=start + shift,
        end_ns=end + shift,
        phases_ns=phases,
        samples=np.full(shape, samples),
        tokens=np.full(shape, np.nan),
        flags=np.zeros(shape, np.int64),
        probe_ns=np.zeros(shape, np.int64),
        waits=tuple(
            waits_of([(k, s, at + o, at + o, end + o) for k, s, at, end in w])
            for w, o in zip(waits, offsets, strict=True)
        ),
    )


def waits_of(
    rows: Sequence[tuple[int, int, int, int, int]], world: Sequence[bool] | None = None
) -> Waits:
    """Waits from (key, step, issue_ns, wait_ns, end_ns)."""
    table = np.asarray(rows, np.int64).reshape(-1, 5)
    everyone = np.ones(len(table), np.bool_) if world is None else np.asarray(world, np.bool_)
    return Waits(*(np.ascontiguousarray(column) for column in table.T), world=everyone)


def data_parallel(
    work: Sequence[Sequence[Segment]], *, network: float = 0.0, samples: float = 8.0
) -> Panel:
    """Plain DDP: one synchronization a step. work[s][r]: phase to ms."""
    return synchronous(
        [[[rank] for rank in step] for step in work], network=network, samples=samples
    )


def alone(work: Sequence[Segment], *, samples: float = 8.0) -> Panel:
    """A one-rank run without communication. work[s]: phase to ms."""
    return replace(data_parallel([[step] for step in work], samples=samples), waits=())


def with_flag(panel: Panel, flag: int, steps: Sequence[int], rank: int = 0) -> Panel:
    flags = panel.flags.copy()
    flags[rank, list(steps)] |= flag
    return replace(panel, flags=flags)


def relabelled(panel: Panel, order: Sequence[int]) -> Panel:
    """The same run with its ranks numbered differently."""
    pick = list(order)
    return replace(
        panel,
        start_ns=panel.start_ns[pick],
        end_ns=panel.end_ns[pick],
        phases_ns=panel.phases_ns[pick],
        samples=panel.samples[pick],
        tokens=panel.tokens[pick],
        flags=panel.flags[pick],
        probe_ns=panel.probe_ns[pick],
        waits=tuple(panel.waits[r] for r in pick) if panel.waits else (),
    )


def moved_clocks(panel: Panel, offsets: Sequence[int]) -> Panel:
    """The same run with every rank's clock set differently. offsets: ns."""
    shift = np.asarray(offsets, np.int64)[:, None]
    waits = tuple(
        replace(w, issue_ns=w.issue_ns + o, wait_ns=w.wait_ns + o, end_ns=w.end_ns + o)
        for w, o in zip(panel.waits, offsets, strict=False)
    )
    return replace(panel, start_ns=panel.start_ns + shift, end_ns=panel.end_ns + shift, waits=waits)
