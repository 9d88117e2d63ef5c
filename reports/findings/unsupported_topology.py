"""unsupported-topology: gradients are not reduced over all ranks in each step."""

from __future__ import annotations

from diag.reports import format as f
from diag.reports.findings.case import Case, finding
from diag.reports.model import Finding


def is_unsupported(gradient_groups: tuple[int, ...], local_sgd: bool, world_size: int) -> bool:
    """Whether the identity does not hold: strict subgroups, or steps without a synchronization."""
    return local_sgd or any(1 < size < world_size for size in gradient_groups)


def unsupported_topology(case: Case) -> tuple[Finding, ...]:
    """An info finding: the phases per rank stand, the terms are unknown."""
    if not is_unsupported(case.gradient_groups, case.local_sgd, case.world_size):
        return ()
    if case.local_sgd:
        title = "Gradients are not synchronized in every step"
        evidence = "steps were seen whose gradients no collective reduced (local SGD)"
    else:
        sizes = f.listing([str(size) for size in sorted(set(case.gradient_groups))])
        title = "Gradients are reduced over subgroups of the ranks"
        evidence = f"gradient collectives ran over groups of {sizes} of {case.world_size} ranks"
    return (
        finding(
            "unsupported-topology",
            "info",
            title,
            [evidence, "who waits for whom is then not known, so the terms are left empty"],
            "Read the phases per rank; tensor, pipeline and expert parallelism, HSDP and local "
            "SGD are not accounted for yet.",
        ),
    )
