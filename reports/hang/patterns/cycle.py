"""Ranks wait for each other: they entered groups in another order, or other collectives."""

from __future__ import annotations

from collections import defaultdict

from diag.record.evidence import Collective
from diag.reports.hang import graph
from diag.reports.hang.model import Accusation, CallSite, Pending
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import most_common
from diag.reports.hang.uneven import UNEVEN_HINT, Party, leaver, uneven_words
from diag.reports.hang.views import collective
from diag.reports.hang.words import at, collective_words, verb, who

Sites = tuple[CallSite, ...]
_HINT = (
    "every rank must enter the collectives of all its groups in one common order: look for a call "
    "under a condition that differs between ranks, or for groups used in another order"
)


def cycle(scene: Scene) -> Accusation | None:
    found = [ranks for ranks in graph.cycles(scene.waits) if len(ranks) > 1]
    if not found:
        return None
    ring = min(found, key=lambda ranks: (-len(ranks), sorted(ranks)))
    sites = _sites(scene, ring)
    left = leaver(scene, [_party(scene, site) for site in sites])
    uneven = left is not None
    accused, others = _minority(sites) if left is None else ((sites[left],), (sites[1 - left],))
    culprits = _ranks(accused)
    ordered = (*accused, *others)
    return Accusation(
        code="hang-uneven-inputs" if uneven else "hang-mismatched-collective",
        culprits=culprits,
        waiting=tuple(sorted(scene.blocked - set(culprits))),
        pending=scene.pending_of(_ranks(others) or culprits),
        location=ordered[0].place,
        sites=ordered,
        why=uneven_words(scene, culprits, ordered) if uneven else _why(ordered),
        hint=UNEVEN_HINT if uneven else _HINT,
        provable=True,
    )


def _sites(scene: Scene, ring: frozenset[int]) -> Sites:
    """The ring's ranks by the collective they are in, most ranks first."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank in sorted(ring):
        inside = scene.pending(rank) or Pending("", 0, "")
        found[inside.group, inside.op].append(rank)
    sites = [
        CallSite(
            tuple(ranks),
            f"{collective_words(scene.pending_of(tuple(ranks)))} of group {group}",
            most_common(scene.place_in_collective(rank) for rank in ranks),
        )
        for (group, _), ranks in found.items()
    ]
    return tuple(sorted(sites, key=lambda s: (-len(s.ranks), s.what, str(s.place))))


def _minority(sites: Sites) -> tuple[Sites, Sites]:
    if len(sites) > 1 and len(sites[0].ranks) == len(sites[1].ranks):
        return sites, ()
    return sites[1:] or sites, sites[:1] if len(sites) > 1 else ()


def _party(scene: Scene, site: CallSite) -> Party:
    calls = [_inside(scene, rank) for rank in site.ranks]
    return Party(site.ranks, tuple(call for call in calls if call is not None))


def _inside(scene: Scene, rank: int) -> Collective | None:
    found = (collective(view.progress[rank], seq) for view, seq in scene.waits_in(rank))
    return next((c for c in found if c is not None), None)


def _ranks(sites: Sites) -> tuple[int, ...]:
    return tuple(sorted(rank for site in sites for rank in site.ranks))


def _why(sites: Sites) -> str:
    told = "; ".join(
        f"{who(site.ranks)} {verb(site.ranks, 'is', 'are')} in {site.what}{at(site.place)}"
        for site in sites
    )
    return f"the ranks wait for each other: {told}"
