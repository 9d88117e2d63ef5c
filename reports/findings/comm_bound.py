"""comm-bound: time blocked on communication that no compute hides and no late rank explains."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.accounting import Accounting
from diag.reports.findings.case import Case, Traffic, finding, severity
from diag.reports.model import Finding, Severity, Term, TermName

# Slower than any loopback: if even at this pace the bytes take a tenth of the time, the
# network is not what a rehearsal's ranks waited for.
_SLOW_BYTES_PER_MS = 1e9 / 1e3
_EXPLAINS = 0.1


def comm_bound(case: Case) -> tuple[Finding, ...]:
    """One finding for serialization and transfer together, where they are clearly positive."""
    accounting = case.accounting
    if accounting is None:
        return ()
    transfer, serialization = accounting.term("transfer"), accounting.term("serialization")
    ms = (transfer.ms or 0.0) + (serialization.ms or 0.0)
    level = severity(ms / accounting.step_ms)
    if level is None or not any(_clear(term) for term in (transfer, serialization)):
        return ()
    larger = max(transfer, serialization, key=lambda term: term.ms or 0.0)
    cores = _waits_for_cores(case, transfer)
    return (
        finding(
            "comm-bound",
            _capped(level) if cores else level,
            _title(larger.term, cores),
            _evidence(case, accounting, cores),
            _hint(case, larger.term, cores),
            ms=ms,
            term=larger.term,
            ranks=case.panel.ranks,
            phase="exposed_comm",
            location=case.traffic.site if case.traffic else None,
            would_save_ms=_saves(transfer, serialization),
        ),
    )


def _clear(term: Term) -> bool:
    return term.low is not None and term.low > 0


def _saves(transfer: Term, serialization: Term) -> float | None:
    known = [t.would_save_ms for t in (transfer, serialization) if t.would_save_ms is not None]
    return sum(known) if known else None


def _capped(level: Severity) -> Severity:
    return "info" if level != "info" else level


def _waits_for_cores(case: Case, transfer: Term) -> bool:
    """In a rehearsal: the bytes are too few for the time, or cores are measured to be as short."""
    if not case.rehearsal or not transfer.ms:
        return False
    few = (
        case.traffic is not None
        and case.traffic.bytes / _SLOW_BYTES_PER_MS < _EXPLAINS * transfer.ms
    )
    return few or _waits_as_long(case, transfer.ms)


def _waits_as_long(case: Case, transfer_ms: float) -> bool:
    """Gloo's threads need cores too, and nothing measures their wait: the ranks' stands for it."""
    return case.core_wait is not None and case.core_wait.excess_ms >= transfer_ms


def _title(term: TermName, cores: bool) -> str:
    if cores:
        return "Ranks wait for the cores they share"
    if term == "serialization":
        return "Ranks wait for each other inside the step"
    return "Communication that no compute hides"


def _evidence(case: Case, accounting: Accounting, cores: bool) -> list[str]:
    transfer, serialization = accounting.term("transfer"), accounting.term("serialization")
    what = "waiting in collectives" if cores else "communication itself"
    lines = [
        f"{f.ms(transfer.ms)} of each {f.ms(accounting.step_ms)} step is {what}"
        if transfer.ms is not None
        else "the size of the transfer is unknown"
    ]
    if serialization.ms is not None and serialization.ms >= 0.01 * accounting.step_ms:
        lines.append(
            f"{f.ms(serialization.ms)} is waiting at synchronizations inside the step: ranks that "
            "are slow in turn, in different segments"
        )
    if case.traffic is not None:
        lines += _traffic(case.traffic, transfer.ms)
    if cores:
        lines.append(_why_cores(case, transfer.ms or 0.0))
    return lines


def _why_cores(case: Case, transfer_ms: float) -> str:
    if case.core_wait is not None and _waits_as_long(case, transfer_ms):
        return (
            f"each step the ranks stand ready without a core for {f.ms(case.core_wait.ms)}: while "
            f"they wait so for {_cores(case)}, a rehearsal cannot tell how long the network takes"
        )
    return (
        "so few bytes do not take that long: the ranks of this rehearsal wait for "
        f"{_cores(case)}, not for a network"
    )


def _cores(case: Case) -> str:
    if case.cores is None:
        return "a core"
    return f"the {f.plural(case.cores, 'core')} that {case.ranks_per_node} ranks share"


def _traffic(traffic: Traffic, transfer_ms: float | None) -> list[str]:
    number = f"{traffic.collectives:.1f}".removesuffix(".0")
    waits = "wait" if number == "1" else "waits"
    text = f"each rank moves {f.size(traffic.bytes)} a step, in {number} blocking {waits}"
    if transfer_ms is not None and transfer_ms > 0 and traffic.bytes > 0:
        text += f": {f.size(traffic.bytes / transfer_ms * 1e3)}/s of exposed time"
    lines = [text]
    if traffic.site is not None and traffic.site_ms is not None:
        lines.append(f"its longest wait in your code is {f.ms(traffic.site_ms)} a step")
    return lines


def _hint(case: Case, term: TermName, cores: bool) -> str:
    if cores:
        return "Use fewer ranks than cores, or rehearse on a larger machine; on GPUs, measure anew."
    if term == "serialization":
        return (
            "Even out the work between synchronizations: fewer per-step reductions, "
            "reshard_after_forward=False, or larger FSDP groups."
        )
    return (
        "Move fewer bytes or move them earlier: accumulate gradients under no_sync(), compress "
        "them (a bf16 communication hook), larger batches per rank, larger buckets; then check "
        "the link itself."
    )
