"""torch: its build, read from its files, and what it says once loaded (in a child process)."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any

from diag.doctor.facts import TorchBuild, TorchRuntime
from diag.doctor.facts_gpu import has_driver
from diag.doctor.sources import Absent, Failed


def read_build() -> TorchBuild:
    """The build of the torch that `import torch` would find.

    Raises:
        Absent: there is none.
        Failed: its version file is missing or unreadable.
    """
    spec = importlib.util.find_spec("torch")  # finds without importing
    if spec is None or spec.origin is None:
        raise Absent("no torch can be imported by this Python")
    folder = Path(spec.origin).parent
    try:
        return build_from(folder)
    except (OSError, SyntaxError, KeyError) as error:
        raise Failed(f"{folder / 'version.py'}: {error!r}") from error


def build_from(folder: Path) -> TorchBuild:
    values = _constants((folder / "version.py").read_text(encoding="utf-8"))
    return TorchBuild(
        version=str(values["__version__"]),
        cuda=values.get("cuda"),
        hip=values.get("hip"),
        path=str(folder),
    )


def _constants(source: str) -> dict[str, Any]:
    """Names that are assigned literals at the top of a module."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found.update((t.id, node.value.value) for t in node.targets if isinstance(t, ast.Name))
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = node.value.value
    return found


def read_runtime() -> TorchRuntime:
    """Runs in a child process. Importing torch takes seconds, so it is imported only where it
    can add something: a CUDA build on a machine with a driver. Elsewhere its native libraries
    are loaded, which shows the same breakage (a missing or too old system library)."""
    build = read_build()
    start = time.monotonic()
    if build.cuda is not None and has_driver():
        return _ask_torch(start)
    error = _load_libraries(Path(build.path) / "lib")
    seconds = time.monotonic() - start
    return TorchRuntime(False, error, seconds, False, None, 0, None, None)


def _load_libraries(folder: Path) -> str | None:
    library = folder / "libtorch_cpu.so"
    if not library.exists():  # another platform's or another packager's layout
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def _ask_torch(start: float) -> TorchRuntime:
    try:
        import torch
    except (ImportError, OSError) as error:
        seconds = time.monotonic() - start
        return TorchRuntime(True, str(error), seconds, None, None, None, None, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        count = torch.cuda.device_count()
    return TorchRuntime(
        imported=True,
        error=None,
        seconds=time.monotonic() - start,
        cuda_available=available,
        cuda_error=None if available else _cuda_error(torch, [str(w.message) for w in caught]),
        device_count=count,
        arch_list=tuple(torch.cuda.get_arch_list()),
        nccl=_nccl_version(torch),
    )


def _cuda_error(torch: Any, said: list[str]) -> str | None:
    """Why CUDA cannot be used: initializing it raises the reason."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return said[0].splitlines()[0] if said else None


def _nccl_version(torch: Any) -> tuple[int, ...] | None:
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    return tuple(int(n) for n in torch.cuda.nccl.version()[:3])
