"""torch: is it there, does it load, was it built for this machine?"""

from __future__ import annotations

from diag.doctor.checks import Check, Outcome, Plan, fail, has_nvidia, ok, skip, unknown, warn
from diag.doctor.facts import Facts, Missing, TorchBuild
from diag.doctor.words import version

_OLDEST_PYTHON = (3, 11)
_OLDEST_TORCH = (2, 6)
_NEWEST_TESTED_TORCH = (2, 13)
_INSTALL = "https://pytorch.org/get-started/locally"


def release(text: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` is (2, 13)."""
    parts = text.partition("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in p if c.isdigit()) or 0) for p in parts)


def python_version(facts: Facts, plan: Plan) -> Outcome:
    if isinstance(facts.python, Missing):
        return unknown("Python", facts.python)
    text = f"Python {version(facts.python.version)}"
    if facts.python.version[:2] >= _OLDEST_PYTHON:
        return ok(f"{text} is supported")
    oldest = version(_OLDEST_PYTHON)
    return fail(
        f"{text} is too old for diag",
        f"{facts.python.executable}; diag needs {oldest} or newer",
        hint=f"make an environment with a newer one: python{oldest} -m venv .venv",
    )


def torch_version(facts: Facts, plan: Plan) -> Outcome:
    build = facts.torch_build
    if isinstance(build, Missing):
        return fail(
            "torch is not installed" if build.missing == "absent" else "torch cannot be read",
            build.why,
            hint=f"pip install torch, in the build for this machine: {_INSTALL}",
        )
    if not isinstance(facts.torch, Missing) and facts.torch.error:
        return fail(
            f"torch {build.version} is installed but does not load",
            facts.torch.error,
            hint="reinstall it: pip install --force-reinstall torch",
        )
    return _supported(build)


def _supported(build: TorchBuild) -> Outcome:
    oldest, newest = version(_OLDEST_TORCH), version(_NEWEST_TESTED_TORCH)
    if release(build.version) < _OLDEST_TORCH:
        return fail(
            f"torch {build.version} is too old for diag",
            f"diag needs {oldest} or newer and is tested up to {newest}",
            hint=f"pip install --upgrade 'torch>={oldest}'",
        )
    if release(build.version) > _NEWEST_TESTED_TORCH:
        return ok(
            f"torch {build.version} is newer than diag was tested with",
            f"tested up to {newest}; what a run could not observe is listed in its report",
        )
    return ok(f"torch {build.version} is supported")


def torch_build(facts: Facts, plan: Plan) -> Outcome:
    build = facts.torch_build
    if isinstance(build, Missing):
        return skip("no torch to look at")
    if build.hip is not None:
        return warn(
            f"torch {build.version} is built for AMD GPUs (ROCm {build.hip})",
            "diag measures NVIDIA GPUs and CPU rehearsals; on ROCm it has never been run",
            hint="expect CPU-style timings only, or use an NVIDIA machine",
        )
    if build.cuda is not None:
        return ok(f"torch {build.version} is built for CUDA {build.cuda}")
    if not has_nvidia(facts):
        return ok("a CPU build of torch, as fits a machine without NVIDIA GPUs")
    return fail(
        "a CPU-only build of torch on a machine with NVIDIA GPUs",
        f"torch {build.version} has no CUDA in it: training would run on the CPU",
        hint=f"pip uninstall torch, then install a CUDA build: {_INSTALL}",
    )


def torch_cuda(facts: Facts, plan: Plan) -> Outcome:
    build, runtime = facts.torch_build, facts.torch
    if not has_nvidia(facts):
        return skip("no NVIDIA GPU here")
    if isinstance(build, Missing) or build.cuda is None:
        return skip("this torch has no CUDA in it")
    if isinstance(runtime, Missing):
        return unknown("torch's view of CUDA", runtime)
    if runtime.cuda_available is None:
        return skip("torch does not load, so CUDA could not be asked")
    if runtime.cuda_available:
        return ok("torch can use CUDA", f"asked in {runtime.seconds:.1f} s, import included")
    return fail(
        "torch cannot use CUDA here",
        f"torch {build.version}: {runtime.cuda_error or 'no reason given'}",
        hint="see the checks driver-cuda, gpu-driver and gpus-visible first; then nvidia-smi",
    )


CHECKS = (
    Check("python-version", "torch", python_version),
    Check("torch-version", "torch", torch_version),
    Check("torch-build", "torch", torch_build),
    Check("torch-cuda", "torch", torch_cuda),
)
