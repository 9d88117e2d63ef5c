"""How long the ranks would wait for each other if the network cost nothing.

Each step is replayed in max-plus algebra. A rank's own clock advances only outside of its
waits. A collective completes when its last rank has issued it; a wait returns at the later of
the rank's own arrival and that completion. The step's makespan, less the slowest rank's
self-time, is what inner synchronizations cost: ranks that are slow in turn, each in another
segment, add up although none of them is slower over the whole step.

One rule serves blocking collectives (issued where they are waited for; the replay then is
Σ_j max_r segment_j) and asynchronous ones (FSDP's prefetch: issued earlier than waited for).
A collective issued before the step counts as issued at its start. Only local durations enter,
so the offset between two ranks' clocks does not.

What one rank sends to all (a broadcast, such as DDP's of its buffers) completes when its root
has issued it, and the root itself waits for nobody.

Known limits: a wait for a strict subgroup of the ranks is taken out of the clock but replayed as
free, since its members are not known here: its time counts as transfer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diag.reports.panel import EXPOSED, F64, I64, Bool, Panel, Waits

_CHUNK_EVENTS = 2_000_000  # bounds the arrays of one pass to about 100 MB
_SLOW_EVENTS = 100_000  # events replayed one by one, at most
_SLOW_STEPS = 200
_EXPLAINED = 0.5  # of the exposed time must lie in recorded waits, or they are others


@dataclass(frozen=True)
class Replay:
    """Attributes:
    inner_ns: [used steps] float, never negative; steps that could not be replayed hold the
        mean of the others.
    known: false where the record holds exposed time but no wait that would explain it.
    notes: what the numbers do not cover, in words for the report.
    """

    inner_ns: F64
    known: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Events:
    """One rank's waits in the used steps, on its own clock; all of one length but `first`, `count`."""

    key: I64
    world: Bool
    root: I64  # position of the rank the others wait for, or -1
    gap: I64  # self-time since the previous wait's return, or since the step's start
    issue_after: I64  # how many of the step's waits had returned when it was issued
    issue_offset: I64  # self-time between that return and the issue
    first: I64  # [S] position of each step's first event
    count: I64  # [S]
    tail: I64  # [S] self-time after the step's last wait
    blocked: I64  # [S] wall time inside the step's waits


def replay(panel: Panel, used: Bool) -> Replay:
    """Inner waiting of each used step. used: [S] mask."""
    steps = np.flatnonzero(used)
    none = np.zeros(len(steps))
    exposed = panel.phases_ns[:, used, EXPOSED]
    if panel.num_ranks == 1 or not exposed.any():
        return Replay(none, known=True)
    if len(panel.waits) != panel.num_ranks or all(len(w.key) == 0 for w in panel.waits):
        note = "the record holds no waits: serialization cannot be told from transfer"
        return Replay(none, False, (note,))
    ranks = [_events(w, panel, r, steps) for r, w in enumerate(panel.waits)]
    inner, skipped = _replay_steps(ranks, len(steps))
    uncovered = np.any(np.stack([e.count == 0 for e in ranks]) & (exposed > 0), axis=0)
    if uncovered.all():
        note = "no step holds the waits of all ranks: serialization cannot be told from transfer"
        return Replay(none, False, (note,))
    share = _share_explained(ranks, exposed, uncovered)
    if share < _EXPLAINED:
        note = f"the recorded waits hold {share:.0%} of the exposed time"
        return Replay(none, False, (f"{note}: serialization cannot be told from transfer",))
    inner[uncovered] = inner[~uncovered].mean()
    return Replay(inner, True, _notes(ranks, exposed, skipped, int(uncovered.sum())))


def _notes(ranks: list[_Events], exposed: I64, skipped: int, uncovered: int) -> tuple[str, ...]:
    notes = []
    if uncovered:
        notes.append(
            f"{uncovered} of {exposed.shape[1]} steps hold exposed time without its waits; "
            "their serialization is taken from the others"
        )
    if skipped:
        notes.append(
            f"{skipped} of {exposed.shape[1]} steps, in which the ranks' collectives differ, "
            "were not replayed; their serialization is taken from others like them"
        )
    if not all(e.world.all() for e in ranks):
        notes.append("waits on subgroups of the ranks count as transfer")
    return tuple(notes)


def _share_explained(ranks: list[_Events], exposed: I64, uncovered: Bool) -> float:
    """How much of the covered steps' exposed time lies inside recorded waits."""
    total = int(exposed[:, ~uncovered].sum())
    return sum(int(e.blocked[~uncovered].sum()) for e in ranks) / total if total else 1.0


def _events(waits: Waits, panel: Panel, rank: int, steps: I64) -> _Events:
    """Put one rank's waits on its own clock. Overlapping waits are merged: blocked is blocked."""
    slot = np.full(panel.num_steps, -1)
    slot[steps] = np.arange(len(steps))
    inside = (waits.step >= 0) & (waits.step < panel.num_steps)
    keep = np.flatnonzero(inside)[slot[waits.step[inside]] >= 0]
    keep = keep[np.lexsort((waits.wait_ns[keep], waits.step[keep]))]
    step = slot[waits.step[keep]]
    start, end = panel.start_ns[rank, steps], panel.end_ns[rank, steps]
    count = np.bincount(step, minlength=len(steps)).astype(np.int64)
    first = np.cumsum(count) - count
    if not len(keep):
        none = np.zeros(0, np.int64)
        world = np.zeros(0, np.bool_)
        return _Events(none, world, none, none, none, none, first, count, end - start, 0 * start)
    wait = np.clip(waits.wait_ns[keep], start[step], end[step])
    returned = np.maximum.accumulate(np.clip(waits.end_ns[keep], wait, end[step]))
    at = np.arange(len(keep))
    since = np.where(at == first[step], start[step], returned[at - 1])
    gap = np.maximum(wait - since, 0)
    last = np.where(count > 0, returned[first + count - 1], start)
    own = np.bincount(step, weights=gap, minlength=len(steps)).astype(np.int64)
    issue = waits.issue_ns[keep]
    after = np.clip(np.searchsorted(returned, issue, side="right"), first[step], at)
    origin = np.where(after == first[step], start[step], returned[after - 1])
    offset = np.maximum(np.minimum(issue, wait[after]) - origin, 0)
    return _Events(
        key=waits.key[keep],
        world=waits.world[keep],
        root=np.full(len(keep), -1) if waits.root is None else waits.root[keep],
        gap=gap,
        issue_after=after - first[step],
        issue_offset=offset,
        first=first,
        count=count,
        tail=end - last,
        blocked=last - start - own,
    )


def _replay_steps(ranks: list[_Events], num_steps: int) -> tuple[F64, int]:
    """Inner waiting per step, and how many steps were only estimated from others like them."""
    inner = np.zeros(num_steps)
    counts = np.stack([e.count for e in ranks])
    alike = (counts == counts[0]).all(axis=0)
    for group in _same_count(counts[0], alike.copy(), len(ranks)):
        inner[group], regular = _replay_alike(ranks, group)
        alike[group] = regular
    odd = np.flatnonzero(~alike)
    if not len(odd):
        return inner, 0
    sample = _sample(odd, int(counts[:, odd].sum()))
    inner[odd] = np.mean(played := [_replay_one(ranks, int(s)) for s in sample])
    inner[sample] = played
    return inner, len(odd) - len(sample)


def _same_count(count: I64, among: Bool, num_ranks: int) -> Iterator[I64]:
    """The steps of `among`, grouped by their number of waits, in chunks of bounded size."""
    for n in np.unique(count[among]):
        group = np.flatnonzero(among & (count == n))
        size = max(1, _CHUNK_EVENTS // (max(int(n), 1) * num_ranks))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def _replay_alike(ranks: list[_Events], steps: I64) -> tuple[F64, Bool]:
    """Replay steps that hold equally many waits on all ranks, all steps and ranks at once.

    Returns the inner waiting [steps], and which steps show the same waits in the same order on
    all ranks; the values of the others mean nothing.
    """
    num = int(ranks[0].count[steps[0]])
    pick = [e.first[steps][:, None] + np.arange(num) for e in ranks]
    key = np.stack([e.key[i] for e, i in zip(ranks, pick, strict=True)])
    gap = np.stack([e.gap[i] for e, i in zip(ranks, pick, strict=True)])
    after = np.stack([e.issue_after[i] for e, i in zip(ranks, pick, strict=True)])
    offset = np.stack([e.issue_offset[i] for e, i in zip(ranks, pick, strict=True)])
    root = ranks[0].root[pick[0]]
    synced = np.all([e.world[i] for e, i in zip(ranks, pick, strict=True)], axis=0)
    tail = np.stack([e.tail[steps] for e in ranks])
    clock = np.zeros((num + 1, len(ranks), len(steps)), np.int64)
    for j in range(num):
        own = clock[j] + gap[:, :, j]
        issued = np.take_along_axis(clock, after[None, :, :, j], axis=0)[0] + offset[:, :, j]
        complete = np.where(np.asarray(synced)[:, j], _complete(issued, root[:, j]), 0)
        clock[j + 1] = np.maximum(own, complete)
    makespan = (clock[num] + tail).max(axis=0)
    slowest = (gap.sum(axis=2) + tail).max(axis=0)
    return (makespan - slowest).astype(np.float64), (key == key[0]).all(axis=(0, 2))


def _complete(issued: I64, root: I64) -> I64:
    """When each rank's wait may return. issued: [R, steps]; root: [steps], -1 for all to all."""
    steps = np.arange(len(root))
    is_root = np.arange(len(issued))[:, None] == root
    return np.where(root < 0, issued.max(axis=0), np.where(is_root, 0, issued[root, steps]))


def _sample(odd: I64, num_events: int) -> I64:
    """Evenly spaced among `odd`, bounded in number and in events replayed."""
    per_step = max(num_events // len(odd), 1)
    size = min(len(odd), _SLOW_STEPS, max(_SLOW_EVENTS // per_step, 10))
    return odd[np.linspace(0, len(odd) - 1, size).round().astype(np.int64)]


def _replay_one(ranks: list[_Events], step: int) -> float:
    """Replay one step whose waits differ in number or order between the ranks.

    A collective completes when the ranks that wait for it in this step have issued it. Where
    the recorded order admits no progress, the rank that is behind goes on without the others.
    """
    lists = [range(int(e.first[step]), int(e.first[step] + e.count[step])) for e in ranks]
    members: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for r, (e, events) in enumerate(zip(ranks, lists, strict=True)):
        for i in events:
            if e.world[i]:
                members[int(e.key[i])].append((r, int(e.issue_after[i]), int(e.issue_offset[i])))
    clock = [[0] for _ in ranks]

    def completion(i: int, waiting: int, wait_for_all: bool) -> int | None:
        e = ranks[waiting]
        group = members[int(e.key[i])] if e.world[i] else []
        if (root := int(e.root[i])) >= 0:
            group = [] if root == waiting else [m for m in group if m[0] == root]
        known = [clock[r][after] + offset for r, after, offset in group if after < len(clock[r])]
        return None if wait_for_all and len(known) < len(group) else max(known, default=0)

    def advance(r: int, wait_for_all: bool) -> bool:
        i = lists[r][len(clock[r]) - 1]
        complete = completion(i, r, wait_for_all)
        if complete is None:
            return False
        clock[r].append(max(clock[r][-1] + int(ranks[r].gap[i]), complete))
        return True

    while behind := [r for r in range(len(ranks)) if len(clock[r]) <= len(lists[r])]:
        if not sum(advance(r, wait_for_all=True) for r in behind):
            advance(min(behind, key=lambda r: clock[r][-1]), wait_for_all=False)
    makespan = max(c[-1] + int(e.tail[step]) for c, e in zip(clock, ranks, strict=True))
    slowest = max(
        sum(int(e.gap[i]) for i in events) + int(e.tail[step])
        for e, events in zip(ranks, lists, strict=True)
    )
    return float(makespan - slowest)
