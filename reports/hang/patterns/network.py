"""Everybody has entered the collective, nobody gets out: the link, or the library."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.hang.model import Accusation
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import most_common
from diag.reports.hang.words import at, collective_words, verb, who

_HINT = (
    "look at the links between the hosts (`ip -s link`, a firewall, `NCCL_DEBUG=INFO`); "
    "`diag doctor` checks the interfaces that were asked for"
)


def network(scene: Scene) -> Accusation | None:
    """No rank is at fault, so none is accused; where the ranks run is told instead."""
    jammed = tuple(sorted(r for r in scene.blocked if scene.all_entered(r)))
    if not jammed:
        return None
    pending = scene.pending_of(jammed)
    place = most_common(scene.place_in_collective(rank) for rank in jammed)
    all_of_it = verb(jammed, "waits", "all wait")
    return Accusation(
        code="hang-network",
        culprits=(),
        waiting=tuple(sorted(scene.blocked)),
        pending=pending,
        location=place,
        why=f"every rank has entered {collective_words(pending)}, and "
        f"{who(jammed)} {all_of_it} for it to complete{at(place)}: {_between(scene, jammed)}",
        hint=_HINT,
    )


def _between(scene: Scene, jammed: tuple[int, ...]) -> str:
    hosts: dict[str, list[int]] = {}
    for rank in jammed:
        one = scene.ranks[rank]
        hosts.setdefault(one.host or f"node {one.node}", []).append(rank)
    if len(hosts) == 1:
        return "all on one host, so the library or its processes are stuck"
    told = [f"{host} ({who(hosts[host])})" for host in sorted(hosts)]
    return f"suspect the link between {f.listing(told)}"
