"""One process group as all ranks report it: the same numbers side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from diag.record.evidence import Collective, GroupProgress, RankEvidence
from diag.reports.hang.signatures import is_point_to_point

_P2P_GROUP = "/p2p"  # numbers in such a group count a rank's own calls and match nobody's


@dataclass(frozen=True, eq=False)
class GroupView:
    """A group through one source ("flight" or "probes": their numbers are not the same).

    Attributes:
        members: global ranks; those that reported it, where nobody knew them.
        progress: by rank; of a member that reports other groups but not this one, nothing entered.
        complete: every member's progress is known.
    """

    name: str
    source: str
    members: tuple[int, ...]
    progress: Mapping[int, GroupProgress]
    complete: bool

    def pending(self, rank: int) -> int | None:
        """The number of the collective that `rank` has entered and not left; None if it has left all."""
        mine = self.progress.get(rank)
        return mine.completed if mine is not None and mine.entered > mine.completed else None

    def not_entered(self, seq: int) -> frozenset[int]:
        """Members known not to have entered number `seq`."""
        return frozenset(r for r in self.members if r in self.progress and self.entered(r) <= seq)

    def entered(self, rank: int) -> int:
        return self.progress[rank].entered

    def at(self, seq: int) -> dict[int, Collective]:
        """What each rank entered as number `seq`, of those whose ring still holds it."""
        found = ((rank, collective(mine, seq)) for rank, mine in self.progress.items())
        return {rank: c for rank, c in found if c is not None}

    def seqs(self) -> list[int]:
        """The numbers held by at least two ranks, in order."""
        held = Counter(c.seq for mine in self.progress.values() for c in mine.recent)
        return sorted(seq for seq, times in held.items() if times > 1)


def collective(progress: GroupProgress, seq: int) -> Collective | None:
    """What was entered as number `seq`; None where the ring no longer holds it."""
    recent = progress.recent
    guess = seq - recent[0].seq if recent else -1
    if 0 <= guess < len(recent) and recent[guess].seq == seq:  # numbers mostly have no gaps
        return recent[guess]
    return next((c for c in reversed(recent) if c.seq == seq), None)


def views(ranks: Mapping[int, RankEvidence]) -> tuple[GroupView, ...]:
    """Every group but point-to-point ones, the flight recorder's first: it also sees C++'s."""
    names = {(g.source, g.group) for rank in ranks.values() for g in rank.groups if not _is_p2p(g)}
    return tuple(_view(ranks, source, name) for source, name in sorted(names))


def _view(ranks: Mapping[int, RankEvidence], source: str, name: str) -> GroupView:
    progress = dict(_reported(ranks, source, name))
    members = _members(progress.values()) or tuple(sorted(progress))
    for rank in members:
        if rank not in progress and rank in ranks and _speaks(ranks[rank], source):
            progress[rank] = GroupProgress(name, members, 0, 0)
    complete = all(rank in progress for rank in members)
    return GroupView(name, source, members, progress, complete)


def _reported(
    ranks: Mapping[int, RankEvidence], source: str, name: str
) -> Iterator[tuple[int, GroupProgress]]:
    for number in sorted(ranks):
        for group in ranks[number].groups:
            if (group.source, group.group) == (source, name):
                yield number, group


def _members(reports: Iterable[GroupProgress]) -> tuple[int, ...]:
    """The largest membership anybody reports: a rank may have seen a part of it only."""
    return max((tuple(sorted(r.ranks)) for r in reports), key=lambda m: (len(m), m), default=())


def _speaks(rank: RankEvidence, source: str) -> bool:
    """Whether silence about a group means that nothing was entered in it."""
    if source == "flight":
        return any(group.source == "flight" for group in rank.groups)
    return rank.beat_age_s is not None


def _is_p2p(group: GroupProgress) -> bool:
    return group.group.endswith(_P2P_GROUP) or (
        bool(group.recent) and all(is_point_to_point(c) for c in group.recent)
    )


def peer_calls(rank: RankEvidence) -> list[tuple[str, Collective]]:
    """(group, call) of each point-to-point call the rank is blocked in; root is its peer."""
    pending = [g for g in rank.groups if _is_p2p(g) and g.entered > g.completed]
    blocked = [g for g in pending if g.pending_since_ns > 0] or pending
    found = [(g.group, collective(g, g.completed)) for g in blocked]
    return sorted(((name, c) for name, c in found if c is not None), key=lambda one: one[0])
