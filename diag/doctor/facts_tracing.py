"""May one process look into another's stack here? Asked of the kernel by trying it on a child.

Reading the rules alone is not enough: a container's seccomp profile can forbid what Yama and
the capabilities allow, and shows nowhere. Sources: ptrace(2), process_vm_readv(2).
"""

from __future__ import annotations

import ctypes
import errno
import subprocess
from pathlib import Path

from diag.doctor.facts import Tracing

_PTRACE_SEIZE = 0x4206  # attaches without stopping the other process
_CAP_SYS_PTRACE = 19


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_tracing(root: Path = Path("/")) -> Tracing:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        read, attach = _try_reading(child.pid), _try_attaching(child.pid)
    finally:
        child.kill()
        child.communicate()
    return Tracing(_yama_scope(root), _has_capability(root), read, attach)


def _try_reading(pid: int) -> str:
    """What py-spy does to follow Python's frames: copy a few bytes of the other's memory."""
    try:
        address = _first_address(pid)
    except OSError as error:
        return _name(error.errno or 0)
    buffer = ctypes.create_string_buffer(8)
    local = _IoVec(ctypes.cast(buffer, ctypes.c_void_p), 8)
    remote = _IoVec(address, 8)
    libc = ctypes.CDLL(None, use_errno=True)
    count = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return "ok" if count == 8 else _name(ctypes.get_errno())


def _first_address(pid: int) -> int:
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    readable = next((line for line in maps if line.split()[1].startswith("r")), None)
    if readable is None:  # the child has not started its program yet
        raise OSError(errno.EAGAIN, "no readable mapping")
    return int(readable.partition("-")[0], 16)


def _try_attaching(pid: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return "ok" if libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0 else _name(ctypes.get_errno())


def _yama_scope(root: Path) -> int | None:
    path = root / "proc/sys/kernel/yama/ptrace_scope"
    return int(path.read_text(encoding="utf-8")) if path.is_file() else None


def _has_capability(root: Path) -> bool | None:
    lines = (root / "proc/self/status").read_text(encoding="utf-8").splitlines()
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), None)
    return None if effective is None else bool(int(effective, 16) >> _CAP_SYS_PTRACE & 1)


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
