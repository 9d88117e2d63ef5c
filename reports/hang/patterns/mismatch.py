"""Under one number of one group some ranks entered another collective than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diag.record.evidence import Collective
from diag.reports.hang.model import Accusation, CallSite, Pending, Place
from diag.reports.hang.scene import Scene
from diag.reports.hang.signatures import Side, departs, differs, minority, op_name, sides
from diag.reports.hang.stacks import main_thread, most_common, site_place, user_place
from diag.reports.hang.uneven import UNEVEN_HINT, Party, leaver, uneven_words
from diag.reports.hang.views import GroupView
from diag.reports.hang.words import at, collective_words, verb, who

_HINT = (
    "all ranks of a group must make the same calls in the same order: look for a collective under "
    "a condition that differs between ranks (`if rank == 0`, a skipped batch, an early `continue`)"
)
Sides = tuple[Side, ...]
_IN_WORDS = {
    "op": "not the same operation",
    "size": "not the same size",
    "dtype": "not the same type",
    "root": "not the same source rank",
}


@dataclass(frozen=True)
class Mismatch:
    """One number of one group, and the sides that disagree on it, the largest first."""

    view: GroupView
    seq: int
    sides: Sides

    @property
    def differs_in(self) -> str:
        return differs(self.sides[0].collective, self.sides[1].collective)


def mismatches(scene: Scene) -> list[Mismatch]:
    """Per group the earliest number, still under way somewhere, on which its ranks disagree.

    Where the flight recorders of all members agree they are believed: a probe that failed on one
    rank shifts its numbers.
    """
    found = {view: next(_in_group(view), None) for view in scene.views}
    agreed = {
        view.members
        for view, mismatch in found.items()
        if view.source == "flight" and view.complete and mismatch is None
    }
    return [
        mismatch
        for view, mismatch in found.items()
        if mismatch is not None and (view.source == "flight" or view.members not in agreed)
    ]


def _in_group(view: GroupView) -> Iterator[Mismatch]:
    for seq in view.seqs():
        entered = view.at(seq)
        if all(view.progress[rank].completed > seq for rank in entered):
            continue
        found = sides(entered)
        if len(found) > 1:
            yield Mismatch(view, seq, found)


def mismatched(scene: Scene) -> Accusation | None:
    found = mismatches(scene)
    if not found:
        return None
    # The flight recorder's comes first: it also sees what C++ issued.
    mismatch = found[0]
    accused, others, uneven = _parted(scene, mismatch.sides)
    culprits = _ranks(accused)
    sites = tuple(_site(scene, mismatch, side) for side in (*accused, *others))
    waiting = tuple(sorted((set(_ranks(others)) | set(scene.blocked)) - set(culprits)))
    largest = (others or mismatch.sides)[0].collective
    return Accusation(
        code="hang-uneven-inputs" if uneven else "hang-mismatched-collective",
        culprits=culprits,
        waiting=waiting,
        pending=_pending(mismatch, largest),
        location=sites[0].place,
        sites=sites,
        why=uneven_words(scene, culprits, sites) if uneven else _why(mismatch, sites),
        hint=UNEVEN_HINT if uneven else _HINT,
        provable=True,
        notes=tuple(_rhythm(mismatch)),
    )


def _parted(scene: Scene, found: Sides) -> tuple[Sides, Sides, bool]:
    """(accused, others, whether the accused left the loop)."""
    left = leaver(scene, [Party(side.ranks, (side.collective,)) for side in found])
    if left is not None:
        return (found[left],), (found[1 - left],), True
    return *minority(found), False


def _ranks(found: Sides) -> tuple[int, ...]:
    return tuple(sorted(rank for side in found for rank in side.ranks))


def _pending(mismatch: Mismatch, one: Collective) -> Pending:
    return Pending(one.op, mismatch.seq, mismatch.view.name, one.num_bytes, one.dtype)


def _site(scene: Scene, mismatch: Mismatch, side: Side) -> CallSite:
    words = collective_words(_pending(mismatch, side.collective))
    at_seq = mismatch.view.at(mismatch.seq)
    place = most_common(_place(scene, mismatch, at_seq[rank], rank) for rank in side.ranks)
    return CallSite(side.ranks, words, place)


def _place(scene: Scene, mismatch: Mismatch, own: Collective, rank: int) -> Place | None:
    """The line the rank is at while it is inside; that of the call, where it has got out of it."""
    inside = mismatch.view.progress[rank].completed <= mismatch.seq and not scene.is_gone(rank)
    stack = user_place(main_thread(scene.ranks[rank])) if inside and rank in scene.blocked else None
    return stack or site_place(own.site) or user_place(main_thread(scene.ranks[rank]))


def _why(mismatch: Mismatch, sites: tuple[CallSite, ...]) -> str:
    told = "; ".join(
        f"{who(site.ranks)} {verb(site.ranks, 'is', 'are')} in {site.what}{at(site.place)}"
        for site in sites
    )
    return f"the ranks are in different collectives ({_IN_WORDS[mismatch.differs_in]}): {told}"


def _rhythm(mismatch: Mismatch) -> Iterator[str]:
    """Which side does what it did in the steps before: a hint where numbers are equal."""
    broke = [
        side
        for side in mismatch.sides
        if all(departs(_before(mismatch, rank), side.collective) for rank in side.ranks)
    ]
    if len(broke) == 1:
        ranks = broke[0].ranks
        yield (
            f"{who(ranks)} {verb(ranks, 'departs', 'depart')} from the order of earlier steps with "
            f"this {op_name(broke[0].collective)}; the others keep to it"
        )


def _before(mismatch: Mismatch, rank: int) -> list[Collective]:
    return [c for c in mismatch.view.progress[rank].recent if c.seq < mismatch.seq]
