"""cpu-oversubscribed: the ranks' own work is slower because they wait for a core to do it on."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import Case, CoreWait, finding, severity
from diag.reports.findings.small_batch import unamortized_ms
from diag.reports.model import Finding, Severity, Term, TermName

# What a rank does on a core itself; while it waits for its loader it is not ready to run.
_OWN_WORK: tuple[TermName, ...] = ("compute", "optimizer", "copy", "host")


def cpu_oversubscribed(case: Case) -> tuple[Finding, ...]:
    """One finding where the measured wait for a core explains a loss of all ranks alike."""
    accounting, wait = case.accounting, case.core_wait
    if accounting is None or wait is None:
        return ()
    slower = _clear_losses(accounting)
    ms = min(wait.excess_ms, _total(slower) - unamortized_ms(accounting))
    level = severity(ms / accounting.step_ms)
    if level is None:
        return ()
    largest = max(slower, key=lambda term: term.ms or 0.0)
    saves = sum(term.would_save_ms or 0.0 for term in slower)
    return (
        finding(
            "cpu-oversubscribed",
            _capped(case, level),
            _title(case),
            _evidence(case, accounting, wait),
            _hint(case),
            ms=ms,
            term=largest.term,
            ranks=case.panel.ranks,
            would_save_ms=min(ms, saves),
        ),
    )


def _clear_losses(accounting: Accounting) -> list[Term]:
    """Terms of the ranks' own work that are positive beyond chance."""
    terms = (accounting.term(name) for name in _OWN_WORK)
    return [term for term in terms if term.low is not None and term.low > 0]


def _total(terms: list[Term]) -> float:
    return sum(term.ms or 0.0 for term in terms)


def _threads(case: Case) -> int:
    """Of all ranks of a node together; a rank has at least one."""
    return case.ranks_per_node * (case.threads or 1)


def _is_own_doing(case: Case) -> bool:
    """Whether the ranks' own threads are more than the cores."""
    return case.cores is not None and _threads(case) > case.cores


def _capped(case: Case, level: Severity) -> Severity:
    """A rehearsal with more ranks than cores says nothing against the training.

    Several threads per rank were somebody's choice, and one that a real run would repeat.
    """
    chosen = _is_own_doing(case) and (case.threads or 1) > 1
    return "info" if case.rehearsal and not chosen else level


def _title(case: Case) -> str:
    if not _is_own_doing(case):
        return "Ranks wait for cores that something else uses"
    cores = f.plural(case.cores or 1, "core")
    if (case.threads or 1) == 1:
        return f"{case.ranks_per_node} ranks share {cores}"
    return f"{case.ranks_per_node} ranks with {case.threads} threads each share {cores}"


def _evidence(case: Case, accounting: Accounting, wait: CoreWait) -> list[str]:
    lines = [
        f"the typical rank's main thread stood ready without a core for {f.ms(wait.ms)} of each "
        f"{f.ms(accounting.step_ms)} step; at the baseline's pace it would for "
        f"{f.ms(wait.expected_ms)}",
        f"the ranks' own work takes {f.ms(_total(_clear_losses(accounting)))} longer a step than "
        "at the baseline's pace",
    ]
    if case.cores is not None and not _is_own_doing(case):
        threads = f.plural(_threads(case), "thread")
        lines.append(f"the ranks' own {threads} would fit the {f.plural(case.cores, 'core')}")
    return lines


def _hint(case: Case) -> str:
    if not _is_own_doing(case):
        return (
            "Find what else runs on these cores: loader workers (ranks x num_workers), threads of "
            "other libraries, other jobs; give it less, or the ranks more cores."
        )
    room = (case.cores or 1) // case.ranks_per_node
    if (case.threads or 1) > 1 and room >= 1:
        return (
            f"Give each rank fewer threads: diag run --threads {room}, or OMP_NUM_THREADS={room} "
            "with other launchers; and look whether the script sets torch.set_num_threads itself."
        )
    return "Use fewer ranks than cores, or a machine with more; on GPUs each rank needs a core too."
