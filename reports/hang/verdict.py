"""The verdict on a run that stands still: a pure function from what was found on its ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diag.record.evidence import HangEvidence
from diag.reports.hang.account import told
from diag.reports.hang.model import Accusation, Verdict
from diag.reports.hang.patterns.cycle import cycle
from diag.reports.hang.patterns.gone import gone
from diag.reports.hang.patterns.mismatch import mismatched
from diag.reports.hang.patterns.network import network
from diag.reports.hang.patterns.pairing import mispaired
from diag.reports.hang.patterns.pause import paused
from diag.reports.hang.patterns.raised import raised
from diag.reports.hang.patterns.stuck import elsewhere, stopped
from diag.reports.hang.scene import Scene
from diag.reports.hang.words import at, collective_words, verb, who

Pattern = Callable[[Scene], Accusation | None]
# What explains most comes first: an error explains a rank's end, its end that others wait, and a
# mismatch that they wait for each other. A pause excuses only who is waited for and gives no cause.
PATTERNS: tuple[Pattern, ...] = (
    raised,
    mismatched,
    gone,
    cycle,
    stopped,
    paused,
    elsewhere,
    network,
    mispaired,
)


def judge(evidence: HangEvidence) -> Verdict:
    """Who did not come, where and why; `code` is None where that is no hang."""
    scene = Scene.of(evidence)
    found = next((hit for pattern in PATTERNS if (hit := pattern(scene))), None) or _nothing(scene)
    return _verdict(scene, _gone_on(scene, found) or _with_history(scene, found))


def judge_pairing(evidence: HangEvidence) -> Verdict | None:
    """Whether a run, even one that goes on, pairs its collectives wrongly; None: not as far as seen.

    Needs the ranks' groups only; never proven, as such a run may end by itself.
    """
    scene = Scene.of(evidence)
    found = mispaired(scene)
    return None if found is None else _verdict(scene, found)


def _verdict(scene: Scene, found: Accusation) -> Verdict:
    return Verdict(
        run=scene.evidence.run,
        code=found.code,
        proven=found.provable and scene.stood_still,
        culprits=found.culprits,
        waiting=found.waiting,
        collective=found.pending,
        location=found.location,
        why=found.why,
        seconds_to_verdict=scene.seconds,
        evidence=(*found.notes, *told(scene, found)),
        hint=found.hint,
        sites=found.sites,
        pause=found.pause,
        missing=_missing(scene),
    )


def _gone_on(scene: Scene, found: Accusation) -> Accusation | None:
    """Whoever moved between the readings was slow, not stuck."""
    moved = tuple(sorted(r for r in (*found.culprits, *found.waiting) if r in scene.moved))
    if found.provable or found.code is None or not moved or all(map(scene.is_gone, moved)):
        return None
    return Accusation(
        code=None,
        culprits=(),
        waiting=found.waiting,
        pending=found.pending,
        location=found.location,
        why=f"{who(moved)} went on between the two readings: slow, but no hang",
        hint="",
        notes=(f"at the second reading: {found.why}",),
    )


def _with_history(scene: Scene, found: Accusation) -> Accusation:
    """An earlier wrong pairing is told beside what came of it."""
    earlier = mispaired(scene) if found.code and found.waiting else None
    return found if earlier is None else replace(found, notes=(*found.notes, earlier.why))


def _nothing(scene: Scene) -> Accusation:
    waiting = tuple(sorted(scene.blocked))
    pending = scene.pending_of(waiting)
    if waiting:
        place = scene.place_in_collective(waiting[0])
        return Accusation(
            code="hang-missing-rank",
            culprits=(),
            waiting=waiting,
            pending=pending,
            location=place,
            why=f"{who(waiting)} {verb(waiting, 'waits', 'wait')} in {collective_words(pending)}"
            f"{at(place)}, and nothing that could be read says for whom",
            hint="look at the stacks in evidence.json; point-to-point calls must be made in an "
            "order in which each receive has its send",
        )
    read = bool(scene.ranks)
    why = "no rank waits for another" if read else "nothing could be read of any rank"
    return Accusation(code=None, culprits=(), waiting=(), why=why, hint="")


def _missing(scene: Scene) -> tuple[str, ...]:
    said = list(scene.evidence.missing)
    if not scene.evidence.readings:
        said.append("no reading was taken")
    elif len(scene.evidence.readings) == 1:
        said.append("the second reading was not taken, so nothing is proven")
    said += _by_rank({r: rank.missing for r, rank in scene.ranks.items()})
    absent = [r for r in range(scene.evidence.world_size) if r not in scene.ranks]
    return (*said, *([f"{who(absent)}: nothing was read"] if absent else []))


def _by_rank(missing: dict[int, Sequence[str]]) -> list[str]:
    """Ranks that miss the same are told together."""
    ranks: dict[str, list[int]] = {}
    for rank, reasons in missing.items():
        for reason in reasons:
            ranks.setdefault(reason, []).append(rank)
    return [f"{who(ranks[reason])}: {reason}" for reason in sorted(ranks)]
