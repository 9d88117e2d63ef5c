"""The evidence laid out for the patterns: the ranks as last read, who is blocked, who waits for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property

from diag.record.evidence import HangEvidence, RankEvidence, Reading
from diag.reports.hang import graph
from diag.reports.hang.model import Pending, Place
from diag.reports.hang.stacks import main_thread, most_common, site_place, user_place
from diag.reports.hang.views import GroupView, collective, peer_calls, views

_GONE = ("gone", "zombie")
# Where a main thread is that waits for a collective, in Python's or in the library's words.
_WAITING_FILES = (
    "/distributed_c10d.py", "/c10d_logger.py", "/_functional_collectives.py", "ProcessGroup",
)  # fmt: skip
_WAITING_FUNCTIONS = ("c10d::", "gloo::", "nccl")
# Where the host waits for its device or for DDP, and so for every collective still under way.
_DEVICE_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
                 "cuStreamSynchronize", "cuCtxSynchronize", "synchronize", "_engine_run_backward")  # fmt: skip
_INNERMOST = 6  # frames looked at


@dataclass(frozen=True)
class Scene:
    """What all patterns look at.

    Attributes:
        ranks: by number, as last read, completed by the reading before.
        before: as first read; the same as `ranks` where there was one reading.
    """

    evidence: HangEvidence
    ranks: Mapping[int, RankEvidence]
    before: Mapping[int, RankEvidence]

    @classmethod
    def of(cls, evidence: HangEvidence) -> Scene:
        readings = [_by_number(reading) for reading in evidence.readings]
        if not readings:
            return cls(evidence, {}, {})
        first, last = readings[0], readings[-1]
        merged = {
            rank: _completed(last.get(rank) or first[rank], first.get(rank))
            for rank in sorted({*first, *last})
        }
        return cls(evidence, merged, first)

    # -- time ---------------------------------------------------------------------------

    @cached_property
    def moved(self) -> frozenset[int]:
        """Ranks that got on, or ended, between the readings."""
        return frozenset(
            rank
            for rank, now in self.ranks.items()
            if rank not in self.before or progressed(self.before[rank], now)
        )

    @property
    def stood_still(self) -> bool:
        """Long enough, and the same in two readings: what a proof needs beside its pattern."""
        evidence = self.evidence
        twice = len(evidence.readings) > 1
        return twice and not self.moved and evidence.still_s >= evidence.threshold_s

    @property
    def seconds(self) -> float:
        """Since the last progress, when the last reading was taken."""
        readings = self.evidence.readings
        between = (readings[-1].time_ns - readings[0].time_ns) / 1e9 if readings else 0.0
        return self.evidence.still_s + max(0.0, between)

    # -- ranks --------------------------------------------------------------------------

    def is_gone(self, rank: int) -> bool:
        return rank in self.ranks and self.ranks[rank].state in _GONE

    @cached_property
    def unread(self) -> frozenset[int]:
        """Ranks of whose progress nothing is known."""
        numbers = {*range(self.evidence.world_size), *self.ranks}
        return frozenset(rank for rank in numbers if not _is_read(self.ranks.get(rank)))

    @cached_property
    def blocked(self) -> frozenset[int]:
        """Ranks that wait in a collective."""
        return frozenset(
            number
            for number, rank in self.ranks.items()
            if not self.is_gone(number) and _is_blocked(rank)
        )

    # -- groups -------------------------------------------------------------------------

    @cached_property
    def views(self) -> tuple[GroupView, ...]:
        return views(self.ranks)

    def waits_in(self, rank: int) -> list[tuple[GroupView, int]]:
        """The collectives `rank` is blocked in: its group and number. Best known source first."""
        if rank not in self.blocked:
            return []
        # What the probes see it block on decides: issued and not waited for is not blocked.
        said = {g.group for g in self.ranks[rank].groups if g.pending_since_ns > 0}
        found = [(v, seq) for v in self.views if (seq := v.pending(rank)) is not None]
        exact = [(v, seq) for v, seq in found if v.name in said]
        return exact or found

    @cached_property
    def waits(self) -> dict[int, frozenset[int]]:
        """For each blocked rank those who keep it waiting: members that have not come."""
        return {rank: self._awaited(rank) for rank in sorted(self.blocked)}

    @cached_property
    def reach(self) -> dict[int, frozenset[int]]:
        """The same with those that these wait for in turn."""
        return graph.reach(self.waits)

    def _awaited(self, rank: int) -> frozenset[int]:
        found: set[int] = set()
        for view, seq in self.waits_in(rank):
            found |= view.not_entered(seq)
            # A member that tells nothing is suspected only where it alone can be the reason.
            unknown = [r for r in view.members if r not in view.progress]
            if not view.not_entered(seq) and view.source == "probes":
                found.update(r for r in unknown if r not in self.blocked)
        found.update(root for root in self._peers(rank) if root is not None)
        return frozenset(found - {rank})

    def _peers(self, rank: int) -> list[int | None]:
        """With whom `rank` is blocked between two ranks, where its calls tell."""
        return [c.root for _, c in peer_calls(self.ranks[rank])]

    @cached_property
    def awaited(self) -> frozenset[int]:
        """Ranks at the end of every chain of waiting: not blocked themselves, or not known to be.

        Where nobody's groups tell whom they wait for, all who are not in a collective.
        """
        found = frozenset(r for r in graph.ends(self.waits) if r not in self.blocked)
        if found or any(self.waits.values()) or not self.blocked:
            return found
        if all(self.all_entered(rank) for rank in self.blocked):
            return frozenset()
        return frozenset(self.ranks) - self.blocked

    def all_entered(self, rank: int) -> bool:
        """Whether everybody is known to be in what `rank` waits for."""
        inside = self.waits_in(rank)
        return bool(inside) and all(
            view.complete and not view.not_entered(seq) for view, seq in inside
        )

    def keep_waiting(self, ranks: frozenset[int]) -> bool:
        """Whether it is known, not merely likely, that somebody waits for one of these."""
        return any(self.reach[rank] & ranks for rank in self.blocked - ranks)

    def waiting_for(self, ranks: frozenset[int]) -> tuple[int, ...]:
        """Blocked ranks that wait for one of these, directly or not; all, where no graph tells."""
        found = {r for r in self.blocked - ranks if self.reach[r] & ranks}
        if not found and not any(self.waits.values()):
            found = set(self.blocked - ranks)
        return tuple(sorted(found))

    def pending_of(self, ranks: tuple[int, ...]) -> Pending | None:
        """The collective most of these ranks are blocked in."""
        inside = [found for rank in ranks if (found := self.pending(rank)) is not None]
        return min(inside, key=lambda p: (-inside.count(p), astuple(p)), default=None)

    def pending(self, rank: int) -> Pending | None:
        for view, seq in self.waits_in(rank):
            mine = collective(view.progress[rank], seq)
            if mine is not None:
                return Pending(mine.op, seq, view.name, mine.num_bytes, mine.dtype)
        if rank in self.blocked:
            for name, call in peer_calls(self.ranks[rank]):
                return Pending(call.op, call.seq, name, call.num_bytes, call.dtype)
        return next((Pending("", seq, v.name) for v, seq in self.waits_in(rank)), None)

    def place_in_collective(self, rank: int) -> Place | None:
        """The user's line from which `rank` is in the collective."""
        found = user_place(main_thread(self.ranks[rank])) if rank in self.ranks else None
        if found is not None:
            return found
        inside = [collective(view.progress[rank], seq) for view, seq in self.waits_in(rank)]
        calls = [c for c in inside if c is not None] or [c for _, c in peer_calls(self.ranks[rank])]
        return most_common(site_place(call.site) for call in calls)


def progressed(before: RankEvidence, now: RankEvidence) -> bool:
    """Whether the rank got on, or ended, between two readings."""
    if _counters(before) != _counters(now):
        return True
    then = {(g.source, g.group): (g.entered, g.completed) for g in before.groups}
    sources = {source for source, _ in then}
    # A flight recorder that answered once only tells of no progress; a new group does.
    comparable = [g for g in now.groups if g.source in sources]
    return any(then.get((g.source, g.group)) != (g.entered, g.completed) for g in comparable)


def _counters(rank: RankEvidence) -> tuple[object, ...]:
    gone = rank.state in _GONE
    return gone, rank.exit_code, rank.step, rank.waits_entered, rank.waits_completed


def _by_number(reading: Reading) -> dict[int, RankEvidence]:
    return {rank.rank: rank for rank in sorted(reading.ranks, key=lambda r: r.rank)}


def _completed(now: RankEvidence, before: RankEvidence | None) -> RankEvidence:
    """`now`, with what only the first reading has: stacks and dumps may be taken once."""
    if before is None or before is now or progressed(before, now):
        return now
    have = {(g.source, g.group) for g in now.groups}
    return replace(
        now,
        groups=(*now.groups, *(g for g in before.groups if (g.source, g.group) not in have)),
        threads=now.threads or before.threads,
        children=now.children or before.children,
        failure=now.failure or before.failure,
        ended=now.ended or before.ended,
        wchan=now.wchan or before.wchan,
        syscall=now.syscall or before.syscall,
        oom_killed=before.oom_killed if now.oom_killed is None else now.oom_killed,
        gpu=now.gpu or before.gpu,
        missing=tuple(dict.fromkeys((*now.missing, *before.missing))),
    )


def _is_read(rank: RankEvidence | None) -> bool:
    if rank is None:
        return False
    return bool(rank.groups) or rank.beat_age_s is not None or rank.state in _GONE


def _is_blocked(rank: RankEvidence) -> bool:
    if any(group.pending_since_ns > 0 for group in rank.groups):
        return True
    if rank.phase == "exposed_comm" or rank.waits_entered > rank.waits_completed:
        return True
    pending = any(group.entered > group.completed for group in rank.groups)
    thread = main_thread(rank)
    if thread is None:
        return pending and rank.beat_age_s is None
    innermost = thread.frames[:_INNERMOST]
    # The line that called is the user's: only frames below it tell what is waited for.
    inside = [f for f in innermost if f.native or any(w in f.file for w in _WAITING_FILES)]
    in_wait = any(
        any(w in f.file for w in _WAITING_FILES) or f.function.startswith(_WAITING_FUNCTIONS)
        for f in inside
    )
    on_device = any(f.function in _DEVICE_WAITS for f in innermost)
    return in_wait or (pending and on_device)
