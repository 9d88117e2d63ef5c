"""The host: enough cores, memory and shared memory for the ranks, and no limit in their way."""

from __future__ import annotations

import re

from diag.doctor.checks import (
    Check,
    Outcome,
    Plan,
    fail,
    has_nvidia,
    ok,
    ranks_of,
    skip,
    unknown,
    warn,
)
from diag.doctor.facts import Cpu, Facts, Memory, Missing
from diag.doctor.words import GIB, MIB, count, number, size

# Docker gives 64 MiB; NVIDIA's containers document 1 GiB for NCCL.
_SHM_FAILS_BYTES = 64 * MIB
_SHM_ENOUGH_BYTES = GIB
# `import torch` with torch.distributed takes 0.22 GiB on a CPU build (2.13, measured) and a
# multiple of it with CUDA's libraries and pinned buffers: rules of thumb, not measurements.
_RANK_BYTES_CPU = GIB
_RANK_BYTES_GPU = 4 * GIB
_RANK_BYTES_LEAST = GIB // 2
_OPEN_FILES_GPU = 4096
_OPEN_FILES_LEAST = 256


def shm_size(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.shm, Missing):
        return unknown("/dev/shm", facts.shm)
    shm = facts.shm
    sizes = f"{size(shm.free_bytes)} free of {size(shm.size_bytes)}"
    contained = not isinstance(facts.traces, Missing) and facts.traces.container is not None
    larger = (
        "docker run --shm-size=1g (or --ipc=host); in Kubernetes an emptyDir of medium Memory"
        if contained
        else "sudo mount -o remount,size=8g /dev/shm"
    )
    if shm.size_bytes <= _SHM_FAILS_BYTES:
        cost = "loader workers and NCCL put data there and fail with 'bus error' when it is full"
        return fail(f"/dev/shm has only {size(shm.size_bytes)}", sizes, cost, hint=larger)
    if shm.size_bytes < _SHM_ENOUGH_BYTES:
        return warn(f"/dev/shm is small: {size(shm.size_bytes)}", sizes, hint=larger)
    if shm.free_bytes < _SHM_FAILS_BYTES:
        hint = "ls -l /dev/shm; remove what dead jobs left behind (nccl-*, torch_*)"
        return warn("/dev/shm is full", sizes, hint=hint)
    return ok(f"/dev/shm: {sizes}")


def cpu_cores(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.cpu, Missing):
        return unknown("the cores", facts.cpu)
    cpu, ranks = facts.cpu, ranks_of(facts, plan)
    usable = f"{number(cpu.usable)} usable {'core' if cpu.usable == 1 else 'cores'}"
    if ranks is None:
        return ok(usable, _why_fewer(cpu))
    title = f"{usable} for {count(ranks, 'rank')}"
    if cpu.usable >= ranks:
        return ok(title, _why_fewer(cpu))
    evidence = (_why_fewer(cpu), "ranks take turns on a core, so all of them slow down")
    if has_nvidia(facts):
        return fail(title, *evidence, hint=f"{_more_cores(cpu)}; or fewer ranks")
    return warn(
        title,
        *evidence,
        hint=f"diag run --gpus {max(1, int(cpu.usable))} rehearses without that effect",
    )


def _why_fewer(cpu: Cpu) -> str:
    parts = [f"{count(cpu.count, 'core')} in the machine"]
    if cpu.affinity < cpu.count:
        parts.append(f"{cpu.affinity} by CPU affinity")
    if cpu.quota is not None:
        parts.append(f"{number(cpu.quota)} by the cgroup's quota")
    return ", ".join(parts)


def _more_cores(cpu: Cpu) -> str:
    if cpu.quota is not None and cpu.quota <= cpu.affinity:
        return "raise the container's CPU limit (docker run --cpus, Kubernetes limits.cpu)"
    if cpu.affinity < cpu.count:
        return "ask the scheduler for more cores (Slurm: --cpus-per-task), or widen taskset"
    return "use a machine with more cores"


def cpu_threads(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.cpu, Missing) or isinstance(facts.settings, Missing):
        return skip("the cores or the settings could not be read")
    setting = facts.settings.get("OMP_NUM_THREADS")
    if setting is None:
        return ok("OMP_NUM_THREADS is not set: diag run gives each rank 1 thread")
    if not has_nvidia(facts):
        return ok("a rehearsal has 1 thread per rank, whatever OMP_NUM_THREADS is")
    first = setting.value.partition(",")[0].strip()  # a list gives the levels of nesting
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", first):
        return warn(
            f"OMP_NUM_THREADS={setting.value} is not a number of threads",
            "it is ignored, and every rank starts as many threads as there are cores",
            hint="export OMP_NUM_THREADS=1",
        )
    return _judge_threads(int(first), ranks_of(facts, plan) or 1, facts.cpu)


def _judge_threads(threads: int, ranks: int, cpu: Cpu) -> Outcome:
    title = f"{count(ranks, 'rank')} x {count(threads, 'thread')} on {number(cpu.usable)} cores"
    if threads * ranks <= cpu.usable or threads == 1:
        return ok(title)
    share = max(1, int(cpu.usable) // ranks)
    return warn(
        title,
        "more threads than cores wait for each other at the end of every operation",
        hint=f"export OMP_NUM_THREADS={share}",
    )


def host_memory(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.memory, Missing):
        return unknown("memory", facts.memory)
    memory, ranks = facts.memory, ranks_of(facts, plan) or 1
    each = memory.usable_bytes / ranks
    title = f"{size(memory.usable_bytes)} of memory free for {count(ranks, 'rank')}"
    enough = _RANK_BYTES_GPU if has_nvidia(facts) else _RANK_BYTES_CPU
    if each >= enough:
        return ok(title, _memory_numbers(memory))
    advice = "free memory, raise the container's limit, or use fewer ranks or loader workers"
    if each < _RANK_BYTES_LEAST:
        cost = f"{size(each)} each: a rank is likely to be killed (signal 9) while it starts"
        return fail(title, _memory_numbers(memory), cost, hint=advice)
    cost = f"{size(each)} each; {size(enough)} is a safe start, loader workers not counted"
    return warn(title, _memory_numbers(memory), cost, hint=advice)


def _memory_numbers(memory: Memory) -> str:
    machine = f"{size(memory.available_bytes)} available of {size(memory.total_bytes)}"
    if memory.limit_bytes is None:
        return machine
    used = size(memory.limit_used_bytes or 0)
    return f"{machine}; the cgroup allows {size(memory.limit_bytes)}, {used} in use"


def open_files(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.limits, Missing):
        return unknown("the limits", facts.limits)
    soft, hard = facts.limits.open_files, facts.limits.open_files_hard
    if soft is None:
        return ok("open files: no limit")
    several = (ranks_of(facts, plan) or 1) > 1 and has_nvidia(facts)
    if soft >= (_OPEN_FILES_GPU if several else _OPEN_FILES_LEAST):
        return ok(f"open files: up to {soft:,} per process")
    raised = "unlimited" if hard is None else str(min(hard, 65536))
    return warn(
        f"open files: only {soft:,} per process",
        "loader workers and NCCL's connections each hold some: 'Too many open files'",
        hint=f"ulimit -n {raised}" if hard is None or hard > soft else _raise_hard(),
    )


def _raise_hard() -> str:
    return "the hard limit is as low: raise nofile in /etc/security/limits.conf, or docker --ulimit"


CHECKS = (
    Check("cpu-cores", "host", cpu_cores),
    Check("cpu-threads", "host", cpu_threads),
    Check("host-memory", "host", host_memory),
    Check("shm-size", "host", shm_size),
    Check("open-files", "host", open_files),
)
