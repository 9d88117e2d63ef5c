"""Checks: pure functions from facts to outcomes, the list of all of them, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from diag.codes import CATALOGUE
from diag.doctor.facts import Facts, Missing, Nvml
from diag.doctor.visible import visible_indices

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Plan:
    """What the user is about to do, and does not want to hear about.

    `gpus` is as given to ``--gpus``, None: not said. `ignore` holds codes. `nnodes`: how many
    machines will train together.
    """

    gpus: int | None = None
    ignore: frozenset[str] = frozenset()
    nnodes: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a check found: one line, the numbers behind it, and what to do."""

    status: Status
    title: str
    evidence: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Check:
    """One question about a machine. `code` is in diag.codes and has a page in docs/codes/."""

    code: str
    subject: str
    judge: Callable[[Facts, Plan], Outcome]


@dataclass(frozen=True)
class Result:
    code: str
    subject: str
    outcome: Outcome

    @property
    def status(self) -> Status:
        return self.outcome.status

    @property
    def docs(self) -> str:
        return CATALOGUE[self.code].docs


def ok(title: str, *evidence: str) -> Outcome:
    return Outcome("ok", title, evidence)


def skip(why: str) -> Outcome:
    return Outcome("skip", why)


def warn(title: str, *evidence: str, hint: str) -> Outcome:
    return Outcome("warn", title, evidence, hint)


def fail(title: str, *evidence: str, hint: str) -> Outcome:
    return Outcome("fail", title, evidence, hint)


def unknown(what: str, missing: Missing) -> Outcome:
    """A check that cannot be made because its source gave nothing."""
    return skip(f"{what} could not be read: {missing.why}")


def judge(facts: Facts, plan: Plan, checks: tuple[Check, ...]) -> tuple[Result, ...]:
    """Every check's result, in the order of `checks`."""
    return tuple(Result(c.code, c.subject, _contained(c, facts, plan)) for c in checks)


def _contained(check: Check, facts: Facts, plan: Plan) -> Outcome:
    """A mistake in one check must not hide what the others found; it is shown, not swallowed."""
    if check.code in plan.ignore:
        return skip("ignored, as asked")
    try:
        return check.judge(facts, plan)
    except Exception as error:  # any: see above
        return skip(f"the check itself failed ({type(error).__name__}: {error}); please report it")


NO_GPU = skip("no NVIDIA GPU here")


def has_nvidia(facts: Facts) -> bool:
    """Does anything on this machine point to an NVIDIA GPU, working or not?"""
    if isinstance(facts.nvml, Nvml) or facts.nvml.missing != "absent":
        return True
    if isinstance(facts.traces, Missing):
        return False
    # WSL's /dev/dxg is there for every vendor's GPU
    files = [name for name in facts.traces.device_files if name.startswith("nvidia")]
    return bool(facts.traces.pci_gpus or files or facts.traces.kernel_driver)


def ranks_of(facts: Facts, plan: Plan) -> int | None:
    """How many ranks this machine would run: as asked, else one per visible GPU."""
    return plan.gpus or visible_gpus(facts) or None


def visible_gpus(facts: Facts) -> int | None:
    """GPUs a training process would see: torch's own count, else what the driver and
    CUDA_VISIBLE_DEVICES say; None where neither is known."""
    if not isinstance(facts.torch, Missing) and facts.torch.imported:
        return facts.torch.device_count
    if isinstance(facts.nvml, Missing):
        return 0 if facts.nvml.missing == "absent" else None
    return len(visible_indices(facts).indices)
