"""GPUs: are they there, all of them, free, alike, and can this torch use them?"""

from __future__ import annotations

import re
from collections import Counter

from diag.doctor.checks import (
    NO_GPU,
    Check,
    Outcome,
    Plan,
    fail,
    has_nvidia,
    ok,
    skip,
    unknown,
    visible_gpus,
    warn,
)
from diag.doctor.facts import Facts, Gpu, Missing, NvidiaTraces, Nvml, TorchBuild, TorchRuntime
from diag.doctor.visible import Visible, visible_indices, visible_setting
from diag.doctor.words import GIB, MIB, count, listed, size, version

# The oldest driver branch that runs any minor release of a CUDA major version.
# Source: NVIDIA, "CUDA Compatibility", table "Minor Version Compatibility".
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
_BUSY_BYTES = 256 * MIB  # of one process; a bare CUDA context takes about as much
_UNEXPLAINED_BYTES = 2 * GIB  # used although no process is shown; the driver itself keeps less
_PROHIBITED = 2


def gpu_driver(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.nvml, Missing):
        return _no_driver(facts, facts.nvml)
    if facts.nvml.count is None or facts.nvml.failures:
        return fail(
            "the NVIDIA driver is there but its library answers with errors",
            *facts.nvml.failures[:4],
            hint="nvidia-smi; dmesg | grep -i xid; a GPU that is lost needs a reset or a reboot",
        )
    return ok(f"driver {facts.nvml.driver} answers for {count(facts.nvml.count, 'GPU')}")


def _no_driver(facts: Facts, missing: Missing) -> Outcome:
    traces = facts.traces if isinstance(facts.traces, NvidiaTraces) else None
    if missing.missing != "absent":
        hint = "nvidia-smi; after a driver update, reboot or reload the nvidia kernel module"
        return fail("the NVIDIA driver does not work", missing.why, hint=hint)
    seen = count(len(traces.pci_gpus), "NVIDIA GPU") if traces else "an NVIDIA GPU"
    evidence = f"{seen} on the PCI bus, but: {missing.why}"
    if traces and traces.container:
        hint = "start the container with its GPUs: docker run --gpus all …"
        return fail("this container has no NVIDIA driver", evidence, hint=hint)
    hint = "install the driver (https://docs.nvidia.com/datacenter/tesla), then nvidia-smi"
    return fail("an NVIDIA GPU without a driver", evidence, hint=hint)


def driver_cuda(facts: Facts, plan: Plan) -> Outcome:
    build = facts.torch_build
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(build, Missing) or build.cuda is None:
        return skip("this torch has no CUDA in it")
    if isinstance(facts.nvml, Missing) or facts.nvml.cuda is None:
        return skip("the driver does not say which CUDA it speaks")
    return _compare_cuda(build, facts.nvml, facts.nvml.cuda, _can_use_cuda(facts))


def _can_use_cuda(facts: Facts) -> bool:
    return isinstance(facts.torch, TorchRuntime) and bool(facts.torch.cuda_available)


def _compare_cuda(build: TorchBuild, nvml: Nvml, speaks: tuple[int, ...], works: bool) -> Outcome:
    assert build.cuda is not None
    needs = tuple(int(n) for n in build.cuda.split("."))
    evidence = f"driver {nvml.driver} speaks CUDA {version(speaks)}; torch is {build.version}"
    if speaks >= needs:
        return ok(f"the driver is new enough for CUDA {build.cuda}", evidence)
    if works:
        how = "minor version" if speaks[0] == needs[0] else "forward"
        return ok(f"CUDA {build.cuda} works by {how} compatibility", evidence)
    if speaks[0] == needs[0]:
        return ok(f"CUDA {build.cuda} runs by minor version compatibility", evidence)
    branch = _OLDEST_DRIVER.get(needs[0])
    wanted = f"{branch} or newer" if branch else f"one that speaks CUDA {needs[0]}"
    return fail(
        f"the driver is too old for CUDA {build.cuda}",
        evidence,
        hint=f"update the driver to {wanted}, or install a torch built for CUDA {speaks[0]}: "
        "https://pytorch.org/get-started/previous-versions",
    )


def gpus_visible(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.nvml, Missing):
        return unknown("the list of GPUs", facts.nvml)
    if facts.nvml.count is None:
        return skip("the driver does not count its GPUs")
    seen, visible = visible_gpus(facts), visible_indices(facts)
    if seen is None:
        return skip("torch does not load, so its GPUs could not be counted")
    return _judge_visible(facts, plan, seen, visible, facts.nvml.count)


def _judge_visible(facts: Facts, plan: Plan, seen: int, visible: Visible, there: int) -> Outcome:
    setting = visible_setting(facts)
    shown = "not set" if setting is None else repr(setting.value)
    numbers = f"driver: {there}; CUDA_VISIBLE_DEVICES: {shown}; visible to training: {seen}"
    if plan.gpus is not None and seen < plan.gpus:
        return fail(
            f"{count(plan.gpus, 'GPU')} asked for, {seen} visible",
            numbers,
            hint=_widen(setting is not None, there, plan.gpus),
        )
    if seen == 0:
        return fail("no GPU is visible", numbers, hint=_widen(setting is not None, there, 1))
    if visible.invalid is not None:
        return warn(
            f"CUDA_VISIBLE_DEVICES names {visible.invalid!r}, which is not a GPU here",
            numbers,
            "CUDA ignores that entry and all after it",
            hint=_widen(True, there, there),
        )
    if seen < len(visible.indices) and not any_mig(facts):
        return warn(
            f"torch sees {seen} of {len(visible.indices)} GPUs",
            numbers,
            hint="nvidia-smi; dmesg | grep -i xid: a GPU that CUDA leaves out is often lost",
        )
    return ok(f"{seen} of {count(there, 'GPU')} visible", numbers)


def _widen(is_set: bool, there: int, wanted: int) -> str:
    if there < wanted:
        return f"this machine has {count(there, 'GPU')}: use --gpus {there} or another machine"
    if is_set:
        ids = ",".join(str(i) for i in range(wanted))
        return f"unset CUDA_VISIBLE_DEVICES, or: export CUDA_VISIBLE_DEVICES={ids}"
    return "nvidia-smi shows whether the GPUs are healthy; see also torch-build and torch-cuda"


def any_mig(facts: Facts) -> bool:
    return isinstance(facts.nvml, Nvml) and any(g.mig for g in facts.nvml.gpus)


def _chosen(facts: Facts) -> tuple[Gpu, ...]:
    """The GPUs that training would use."""
    if isinstance(facts.nvml, Missing):
        return ()
    indices = visible_indices(facts).indices
    return tuple(g for g in facts.nvml.gpus if g.index in indices)


def gpu_arch(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    if isinstance(facts.torch, Missing):
        return unknown("torch's list of architectures", facts.torch)
    archs = facts.torch.arch_list
    gpus = [g for g in _chosen(facts) if g.capability]
    if not archs or not gpus:
        return skip("torch or the driver does not tell the architectures")
    how = {g.index: kernels_for(g.capability or (), archs) for g in gpus}
    evidence = [f"GPU {g.index} {g.name}: sm_{_sm(g)}" for g in gpus if how[g.index] != "native"]
    built = f"torch has {' '.join(archs)}"
    if None in how.values():
        return fail(
            f"torch has no kernels for GPU {listed(i for i, h in how.items() if h is None)}",
            *evidence,
            built,
            hint="install a torch build that lists this architecture: https://pytorch.org",
        )
    if "ptx" in how.values():
        hint = "a torch build with native kernels for this GPU starts faster: https://pytorch.org"
        title = "torch must compile its kernels for this GPU on first use"
        return warn(title, *evidence, built, hint=hint)
    return ok("torch has native kernels for every GPU", built)


def _sm(gpu: Gpu) -> str:
    return "".join(str(n) for n in gpu.capability or ())


def kernels_for(capability: tuple[int, ...], archs: tuple[str, ...]) -> str | None:
    """``native``: machine code runs (same major version, minor not newer); ``ptx``: the driver
    compiles PTX of any older version; None: nothing runs. Architecture-specific code (sm_90a)
    runs on exactly its own. Source: CUDA C++ Programming Guide, "Application Compatibility"."""
    best = None
    for kind, major, minor, suffix in _parsed(archs):
        exact = (major, minor) == capability
        if kind == "sm" and (
            exact or (suffix != "a" and major == capability[0] and minor <= capability[1])
        ):
            return "native"
        if kind == "compute" and (exact or (not suffix and (major, minor) <= capability)):
            best = "ptx"
    return best


def _parsed(archs: tuple[str, ...]) -> list[tuple[str, int, int, str]]:
    found = (re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", a) for a in archs)
    return [(m[1], int(m[2]), int(m[3]), m[4]) for m in found if m]


def gpu_models(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    gpus = [g for g in _chosen(facts) if g.name]
    if len(gpus) < 2:
        return skip("fewer than two GPUs to compare")
    models = Counter((g.name, size(g.memory_bytes) if g.memory_bytes else "?") for g in gpus)
    if len(models) == 1:
        (name, memory) = next(iter(models))
        return ok(f"{len(gpus)} GPUs alike: {name}, {memory}")
    most = models.most_common(1)[0][0]
    same = [str(g.index) for g in gpus if g.name == most[0]]
    return warn(
        "the visible GPUs are of different models",
        *(f"{n} x {name}, {memory}" for (name, memory), n in models.most_common()),
        "ranks step together, so the slowest model sets the pace of all",
        hint=f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(same)}",
    )


def gpu_busy(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    gpus = [g for g in _chosen(facts) if g.memory_used_bytes is not None]
    if not gpus:
        return skip("the driver does not tell how much memory is in use")
    busy = [g for g in gpus if _is_busy(g)]
    if not busy:
        return ok(f"{count(len(gpus), 'GPU')} free of other work")
    free = [str(g.index) for g in gpus if g not in busy]
    instead = f", or use the free ones: CUDA_VISIBLE_DEVICES={','.join(free)}" if free else ""
    return warn(
        f"GPU {listed(g.index for g in busy)} already in use",
        *(_held(g) for g in busy),
        hint=f"end what is yours (nvidia-smi shows it){instead}",
    )


def _is_busy(gpu: Gpu) -> bool:
    shown = sum(p.used_bytes or 0 for p in gpu.processes or ())
    return shown > _BUSY_BYTES or (gpu.memory_used_bytes or 0) > _UNEXPLAINED_BYTES


def _held(gpu: Gpu) -> str:
    holders = [f"{p.name or 'a process'} (pid {p.pid})" for p in gpu.processes or ()]
    by = listed(holders) if holders else "a process that cannot be seen from here"
    total = f" of {size(gpu.memory_bytes)}" if gpu.memory_bytes else ""
    return f"GPU {gpu.index}: {size(gpu.memory_used_bytes or 0)}{total} held by {by}"


def gpu_mig(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    gpus = _chosen(facts)
    if not gpus:
        return skip("no GPU to look at")
    split = [g.index for g in gpus if g.mig]
    if not split:
        return ok("no GPU is split (MIG is off or not supported)")
    ids = ",".join(str(i) for i in split)
    return warn(
        f"MIG is on for GPU {listed(split)}",
        "a slice has part of the speed, and slices cannot reach each other directly",
        hint=f"for training over several GPUs: sudo nvidia-smi -i {ids} -mig 0",
    )


def gpu_compute_mode(facts: Facts, plan: Plan) -> Outcome:
    if not has_nvidia(facts):
        return NO_GPU
    gpus = [g for g in _chosen(facts) if g.compute_mode is not None]
    if not gpus:
        return skip("the driver does not tell the compute mode")
    closed = [g.index for g in gpus if g.compute_mode == _PROHIBITED]
    if not closed:
        return ok("every GPU accepts compute work")
    ids = ",".join(str(i) for i in closed)
    return fail(
        f"GPU {listed(closed)} refuses compute work",
        "its compute mode is Prohibited",
        hint=f"sudo nvidia-smi -i {ids} -c DEFAULT",
    )


CHECKS = (
    Check("gpu-driver", "GPUs", gpu_driver),
    Check("driver-cuda", "GPUs", driver_cuda),
    Check("gpus-visible", "GPUs", gpus_visible),
    Check("gpu-arch", "GPUs", gpu_arch),
    Check("gpu-models", "GPUs", gpu_models),
    Check("gpu-busy", "GPUs", gpu_busy),
    Check("gpu-mig", "GPUs", gpu_mig),
    Check("gpu-compute-mode", "GPUs", gpu_compute_mode),
)
