"""The evidence in sentences: what each rank is at, alike ones together, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

from diag.reports import format as f
from diag.reports.hang.model import Accusation
from diag.reports.hang.patterns.gone import how_it_ended
from diag.reports.hang.patterns.stuck import doing_of
from diag.reports.hang.scene import Scene
from diag.reports.hang.stacks import failure_place
from diag.reports.hang.words import at, collective_words, first_line, who

_MOST_LINES = 12  # sentences about ranks


def told(scene: Scene, found: Accusation) -> Iterator[str]:
    """The culprits' sentences first."""
    accused = frozenset(found.culprits)
    yield from _ranks(scene, accused)
    yield from _ranks(scene, frozenset(scene.ranks) - accused)
    yield from _time(scene)


def _ranks(scene: Scene, ranks: frozenset[int]) -> Iterator[str]:
    alike: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        alike.setdefault(_line(scene, rank), []).append(rank)
    told = sorted(alike, key=lambda w: (-len(alike[w]), w))
    for words in told[:_MOST_LINES]:
        yield f"{who(alike[words])}: {words}"
    rest = [rank for words in told[_MOST_LINES:] for rank in alike[words]]
    if rest:
        yield f"{who(rest)}: see evidence.json"


def _line(scene: Scene, rank: int) -> str:
    if rank not in scene.ranks:
        return "nothing was read"
    return f"{_doing(scene, rank)}{_flag(scene, rank)}{_step(scene, rank)}"


def _doing(scene: Scene, number: int) -> str:
    rank = scene.ranks[number]
    if rank.failure is not None:
        message = first_line(rank.failure.message)
        what = f"{rank.failure.type}: {message}" if message else rank.failure.type
        return f"{what}{at(failure_place(rank))}"
    if scene.is_gone(number):
        return how_it_ended(rank)
    if number in scene.blocked:
        place = scene.place_in_collective(number)
        stopped = ", stopped" if rank.state == "stopped" else ""
        awaited = scene.waits.get(number)
        whom = f", for {who(awaited)}" if awaited else ""
        return f"in {collective_words(scene.pending(number))}{at(place)}{whom}{stopped}"
    doing = doing_of(scene, number)
    if doing.kind == "unknown":
        if number in scene.unread:
            return "nothing is known of its progress"
        return at(doing.place).strip() or _phase(rank.phase)
    return doing.sentence


def _phase(phase: str) -> str:
    return f"last seen in {phase}" if phase else "not in a collective"


def _flag(scene: Scene, rank: int) -> str:
    flag = scene.evidence.flagged.get(rank)
    return f" ({flag})" if flag else ""


def _step(scene: Scene, rank: int) -> str:
    step = scene.ranks[rank].step
    return f"; {f.plural(step, 'step')} done" if step >= 0 else ""


def _time(scene: Scene) -> Iterator[str]:
    evidence = scene.evidence
    if not evidence.readings:
        return
    yield (
        f"no rank got on for {f.seconds(evidence.still_s)} before the first reading "
        f"({f.seconds(evidence.threshold_s)} count as too long)"
    )
    if len(evidence.readings) > 1:
        apart = (evidence.readings[-1].time_ns - evidence.readings[0].time_ns) / 1e9
        same = (
            f"{who(scene.moved)} got on or ended in between" if scene.moved else "they are the same"
        )
        yield f"two readings, {f.seconds(apart)} apart: {same}"
