"""What diag itself needs: a place to write, a cheap clock, leave to look into a hung rank."""

from __future__ import annotations

from diag.doctor.checks import Check, Outcome, Plan, fail, ok, ranks_of, unknown, warn
from diag.doctor.facts import Facts, Missing, Tracing
from diag.doctor.words import GIB, MIB, size

_RECORD_BYTES = 256 * MIB  # what a rank's record may take at most, by default
_COMFORT_BYTES = 5 * GIB  # room for some runs and the script's own checkpoints
_SLOW_READING_NS = 500.0  # read without a system call, a clock takes 20-60 ns
_SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")


def runs_disk(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.runs, Missing):
        return unknown("the place for runs", facts.runs)
    runs, ranks = facts.runs, ranks_of(facts, plan) or 1
    elsewhere = "diag run --runs-dir /a/larger/disk …"
    if not runs.writable:
        title = "runs cannot be written here"
        return fail(title, f"no permission to write {runs.path}", hint=elsewhere)
    need = ranks * _RECORD_BYTES
    free = f"{size(runs.free_bytes)} free for {runs.path}"
    bound = f"a run may record up to {size(need)}"
    if runs.free_bytes < need:
        return fail("the disk is too full to record a run", free, bound, hint=elsewhere)
    if runs.free_bytes < need + _COMFORT_BYTES:
        return warn("little disk space for runs", free, bound, hint=elsewhere)
    return ok(f"{size(runs.free_bytes)} free for runs", runs.path)


def clock_source(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.clock, Missing):
        return unknown("the clock", facts.clock)
    source, read = facts.clock.source, facts.clock.read_ns
    name = f"clock source {source}" if source else "the clock"
    if read <= _SLOW_READING_NS and source not in _SLOW_SOURCES:
        return ok(f"{name}: one reading takes {read:.0f} ns")
    return warn(
        f"{name} is slow: one reading takes {read:.0f} ns",
        "the probes read it some dozen times a step; their cost in a report tells how much",
        hint="echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
    )


def trace_permission(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.python, Missing) or isinstance(facts.tracing, Missing):
        missing = facts.python if isinstance(facts.python, Missing) else facts.tracing
        assert isinstance(missing, Missing)
        return unknown("the permission to trace", missing)
    cost = "without it, where a hung rank stands cannot be seen"
    if facts.python.py_spy is None:
        hint = f"{facts.python.executable} -m pip install py-spy"
        return warn("py-spy is not installed", cost, hint=hint)
    refused = _refused(facts.tracing)
    if refused is None and _children_only(facts.tracing):
        return ok(
            "a process may look into its children, with sudo into any other",
            "kernel.yama.ptrace_scope is 1",
        )
    if refused is None:
        return ok("a hung rank's stack can be read from outside", facts.python.py_spy)
    return warn(
        "a hung rank's stack cannot be read from outside",
        refused,
        cost,
        hint=_allow(facts),
    )


def _refused(tracing: Tracing) -> str | None:
    """Why even a child cannot be traced (Yama's scopes 2 and 3, seccomp), or None."""
    if tracing.read == tracing.attach == "ok":
        return None
    tried = (
        f"tried on a child process: reading its memory {tracing.read}, attaching {tracing.attach}"
    )
    scope = tracing.yama_scope
    return tried if scope is None else f"{tried}; kernel.yama.ptrace_scope is {scope}"


def _children_only(tracing: Tracing) -> bool:
    return tracing.yama_scope == 1 and not tracing.cap_sys_ptrace


def _allow(facts: Facts) -> str:
    if not isinstance(facts.traces, Missing) and facts.traces.container is not None:
        return "docker run --cap-add SYS_PTRACE …"
    return "sudo sysctl kernel.yama.ptrace_scope=1"


CHECKS = (
    Check("runs-disk", "diag", runs_disk),
    Check("clock-source", "diag", clock_source),
    Check("trace-permission", "diag", trace_permission),
)
