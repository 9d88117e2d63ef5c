"""Whether ranks left their training loop while the others were still in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from diag.record.evidence import Collective
from diag.reports.hang.model import CallSite
from diag.reports.hang.scene import Scene
from diag.reports.hang.signatures import kind, op_name
from diag.reports.hang.words import at, verb, who

UNEVEN_HINT = (
    "give every rank the same number of batches: DistributedSampler, drop_last=True, a fixed "
    "number of steps per epoch; or train through diag's Engine, or torch's Join, which allow "
    "uneven inputs"
)


@dataclass(frozen=True)
class Party:
    """Ranks that are in the same collective, and that call as each of them made it."""

    ranks: tuple[int, ...]
    calls: tuple[Collective, ...]


def leaver(scene: Scene, parties: Sequence[Party]) -> int | None:
    """Which of two parties, the larger first, left the training loop that the other is still in."""
    if len(parties) != 2:
        return None
    larger = len(parties[0].ranks) > len(parties[1].ranks)
    # Against a majority only the loaders' own word counts.
    if _left(scene, parties[1], parties[0], guess=True):
        return 1
    return 0 if _left(scene, parties[0], parties[1], guess=not larger) else None


def _left(scene: Scene, left: Party, rest: Party, guess: bool) -> bool:
    if not left.calls or not rest.calls or not _ran_too(scene, left, rest.calls):
        return False
    told = [scene.ranks[rank].loader_ended for rank in left.ranks]
    if any(scene.ranks[rank].loader_ended for rank in rest.ranks) or False in told:
        return False
    if None not in told:
        return True
    # Nobody knows of the loaders: a barrier is what stands after a loop.
    return guess and _all_barriers(left.calls) and not _all_barriers(rest.calls)


def _all_barriers(calls: Iterable[Collective]) -> bool:
    return all(op_name(call) == "barrier" for call in calls)


def _ran_too(scene: Scene, left: Party, calls: Iterable[Collective]) -> bool:
    """Whether what the rest is in is part of the loop that `left` ran as well."""
    return all(_has_done(scene, rank, call) for rank in left.ranks for call in calls)


def _has_done(scene: Scene, rank: int, one: Collective) -> bool:
    groups = scene.ranks[rank].groups
    return any(kind(c) == kind(one) for group in groups for c in group.recent)


def uneven_words(scene: Scene, culprits: Collection[int], sites: tuple[CallSite, ...]) -> str:
    """Says how sure it is: only a loader's own end tells that it had no more batches."""
    mine = next(site for site in sites if set(site.ranks) <= set(culprits))
    rest = next((site for site in sites if not set(site.ranks) & set(culprits)), None)
    known = all(scene.ranks[rank].loader_ended for rank in culprits)
    had = "had" if known else "seems to have had" if len(culprits) == 1 else "seem to have had"
    words = (
        f"{who(culprits)} {had} fewer batches: {verb(culprits, 'it has', 'they have')} left the "
        f"training loop for {mine.what}{at(mine.place)}"
    )
    if rest is None:
        return words
    still = verb(rest.ranks, "is", "are")
    return f"{words}, while {who(rest.ranks)} {still} still in {rest.what}{at(rest.place)}"
