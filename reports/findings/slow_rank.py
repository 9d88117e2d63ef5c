"""slow-rank: one or more ranks do their own part of the step more slowly than the rest."""

from __future__ import annotations

import numpy as np

from diag.reports import format as f
from diag.reports.accounting import Accounting, Straggler
from diag.reports.findings.case import Case, finding, severity
from diag.reports.findings.cures import saved_by_curing
from diag.reports.findings.periodic import occasional_workers
from diag.reports.findings.words import ARE_SLOW, IS_SLOW, slow_hint
from diag.reports.model import Finding

_ALIKE = 0.75  # ranks with at least this part of the worst one's excess are equally slow
_MORE_WORK = 1.05  # times the others' samples or tokens
_GAINS = 0.1  # of its excess: a rank whose cure alone gives back less is hidden by another


def slow_rank(case: Case) -> tuple[Finding, ...]:
    """One finding for each group of equally slow ranks with the same slow phase, worst first.

    A rank that works from time to time while the others wait belongs to rank0-work.
    """
    accounting = case.accounting
    if accounting is None or not accounting.slow_rank:
        return ()
    workers = occasional_workers(case)
    slow = [s for s in accounting.stragglers if s.rank not in workers]
    groups = _groups(slow)
    found = (_finding(case, accounting, group, groups) for group in groups)
    return tuple(one for one in found if one is not None)


def _groups(stragglers: list[Straggler]) -> list[list[Straggler]]:
    """Stragglers, worst first, put together where phase and size agree."""
    groups: list[list[Straggler]] = []
    for one in stragglers:
        for group in groups:
            if group[0].phase == one.phase and one.excess_ms >= _ALIKE * group[0].excess_ms:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _finding(
    case: Case, accounting: Accounting, group: list[Straggler], groups: list[list[Straggler]]
) -> Finding | None:
    ranks = tuple(sorted(s.rank for s in group))
    # The worst rank's excess is the straggler term; a lesser one's is hidden behind it.
    worst = accounting.stragglers[0] in group
    term_ms = accounting.term("straggler").ms
    ms = term_ms if worst and term_ms is not None else max(s.excess_ms for s in group)
    level = severity(ms / accounting.step_ms)
    if level is None:
        return None
    phase = group[0].phase
    saves = saved_by_curing(case, [s.rank for s in group])
    return finding(
        "slow-rank",
        level,
        f"{_subject(ranks)} {(IS_SLOW if len(ranks) == 1 else ARE_SLOW)[phase]}",
        _evidence(case, accounting, group, groups, saves),
        slow_hint(phase, case.device),
        ms=ms,
        term="straggler",
        ranks=ranks,
        phase=phase,
        would_save_ms=saves,
    )


def _subject(ranks: tuple[int, ...]) -> str:
    name = f.rank_names(ranks)
    return name[0].upper() + name[1:]


def _evidence(
    case: Case,
    accounting: Accounting,
    group: list[Straggler],
    groups: list[list[Straggler]],
    saves: float,
) -> list[str]:
    worst = group[0]
    typical = accounting.typical_ms[worst.phase]
    own = typical + worst.phase_excess_ms[worst.phase]
    lines = [
        f"rank {worst.rank} spends {f.ms(own)} of each step in {worst.phase}, "
        f"the typical rank {f.ms(typical)}"
    ]
    lines += _others_wait(accounting, worst)
    lines += _more_work(case, worst.rank)
    if group is groups[0] or saves >= _GAINS * worst.excess_ms:
        lines += _share_of_steps(case, group)
    else:
        hidden_by = f.rank_names(tuple(sorted(s.rank for s in groups[0])))
        together = saved_by_curing(case, [s.rank for each in groups for s in each])
        lines.append(
            f"hidden behind {hidden_by}: cured alone it saves little, all together {f.ms(together)}"
        )
    return lines


def _others_wait(accounting: Accounting, worst: Straggler) -> list[str]:
    """Waiting, the mirror image of a straggler: it waits least itself."""
    slow = {s.rank for s in accounting.stragglers}
    exposed = {row.rank: row.phases_ms["exposed_comm"] for row in accounting.per_rank}
    others = [ms for rank, ms in exposed.items() if rank not in slow]
    if worst.rank not in exposed or not others:
        return []
    return [
        f"the others block on communication for {f.ms(float(np.median(others)))} a step, "
        f"rank {worst.rank} for {f.ms(exposed[worst.rank])}"
    ]


def _share_of_steps(case: Case, group: list[Straggler]) -> list[str]:
    """How often the last rank is one of these: a constant cause shows in nearly every step."""
    last = case.self_ms().argmax(axis=0)
    positions = [case.position(s.rank) for s in group]
    share = float(np.isin(last, positions).mean())
    who = "it is" if len(group) == 1 else "one of them is"
    return [f"{who} the slowest in {f.percent(share)} of {f.plural(len(last), 'step')}"]


def _more_work(case: Case, rank: int) -> list[str]:
    """Uneven work explains a slow rank before hardware does."""
    position = case.position(rank)
    for name, counts in (("tokens", case.panel.tokens), ("samples", case.panel.samples)):
        per_rank = counts[:, case.used].mean(axis=1)
        others = np.delete(per_rank, position)
        if np.isfinite(per_rank).all() and per_rank[position] > _MORE_WORK * np.median(others):
            own, typical = f.significant(per_rank[position]), f.significant(np.median(others))
            return [f"it processes {own} {name} a step, the others {typical}"]
    return []
