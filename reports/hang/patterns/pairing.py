"""Ranks went on from collectives that were not the same: the run lives, its numbers are wrong."""

from __future__ import annotations

from diag.record.evidence import Collective
from diag.reports.hang.model import Accusation, CallSite
from diag.reports.hang.scene import Scene
from diag.reports.hang.signatures import Side, differs, minority, op_name, sides
from diag.reports.hang.stacks import most_common, site_place
from diag.reports.hang.views import GroupView
from diag.reports.hang.words import at, who

_HINT = (
    "the results since then mix different values: end the run, and look for a `continue`, a "
    "condition or a cast that differs between ranks"
)
_FARTHEST = 8  # calls a rank may be ahead by
_FEWEST = 6  # numbers that must agree once they are shifted


def mispaired(scene: Scene) -> Accusation | None:
    """A completed collective whose sides differ in type or size, or a sequence that is shifted."""
    for view in scene.views:
        found = _differing(view) or _shifted(view)
        if found is not None:
            seq, told = found
            return _accusation(view, seq, told)
    return None


def _differing(view: GroupView) -> tuple[int, tuple[Side, ...]] | None:
    for seq in view.seqs():
        entered = view.at(seq)
        done = all(view.progress[rank].completed > seq for rank in entered)
        found = sides(entered) if done else ()
        if len(found) > 1 and differs(found[0].collective, found[1].collective) in ("dtype", "op"):
            return seq, found
    return None


def _shifted(view: GroupView) -> tuple[int, tuple[Side, ...]] | None:
    """Same calls, but one side is some calls ahead: its lines agree once they are moved."""
    common = [seq for seq in view.seqs() if len(view.at(seq)) == len(view.progress)]
    for position, seq in enumerate(common):
        entered = view.at(seq)
        by_site = _by_site(entered)
        if len(by_site) == 2 and _realigns(view, by_site, common[position:]):
            return seq, by_site
    return None


def _by_site(entered: dict[int, Collective]) -> tuple[Side, ...]:
    found: dict[tuple[str, str], list[int]] = {}
    for rank, one in entered.items():
        found.setdefault((one.site, op_name(one)), []).append(rank)
    made = [Side(entered[ranks[0]], tuple(sorted(ranks))) for ranks in found.values()]
    return tuple(sorted(made, key=lambda s: (-len(s.ranks), s.collective.site)))


def _realigns(view: GroupView, pair: tuple[Side, ...], seqs: list[int]) -> bool:
    """Whether from here on the lines of one side are the other's some calls later, over several
    different lines. Lines that merely differ (each rank its own branch) never agree."""
    one, other = (_lines(view, side.ranks[0], seqs) for side in pair)
    if "" in one or "" in other or one == other:
        return False
    return any(
        _agree(one[shift:], other) or _agree(other[shift:], one)
        for shift in range(1, _FARTHEST + 1)
    )


def _lines(view: GroupView, rank: int, seqs: list[int]) -> list[str]:
    ring = {c.seq: c.site for c in view.progress[rank].recent}
    return [ring.get(seq, "") for seq in seqs]


def _agree(later: list[str], now: list[str]) -> bool:
    pairs = list(zip(later, now, strict=False))
    return len(pairs) >= _FEWEST and len(set(later)) > 1 and all(a == b for a, b in pairs)


def _accusation(view: GroupView, seq: int, found: tuple[Side, ...]) -> Accusation:
    accused, others = minority(found)
    sites = tuple(_site(view, seq, side) for side in (*accused, *others))
    culprits = tuple(sorted(rank for side in accused for rank in side.ranks))
    told = "; ".join(f"{who(s.ranks)} gave {s.what}{at(s.place)}" for s in sites)
    return Accusation(
        code="hang-mismatched-collective",
        culprits=culprits,
        waiting=(),
        location=sites[0].place,
        sites=sites,
        why=f"the ranks were paired wrongly, and went on: as number "
        f"{seq} of group {view.name} {told}",
        hint=_HINT,
    )


def _site(view: GroupView, seq: int, side: Side) -> CallSite:
    one = side.collective
    what = f"{op_name(one)} of {one.dtype}" if one.dtype else op_name(one)
    at_seq = view.at(seq)
    return CallSite(side.ranks, what, most_common(site_place(at_seq[r].site) for r in side.ranks))
