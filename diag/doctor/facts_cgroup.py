"""What the kernel's control groups allow, version 1 and 2, also from inside a container.

A group's limits hold for everything below it, so the tightest on the way up to the mount
counts. Inside a container the group's path may name parents that are not mounted there;
the mount's own root then stands for them (as the JVM resolves it).
Sources: cgroups(7); kernel documentation admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page


@dataclass(frozen=True)
class _Mount:
    root: str  # the part of the hierarchy that is mounted
    point: Path
    options: frozenset[str]  # version 1: the controllers
    version: int


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores this process's groups may use together; None: as many as there are."""
    quotas = [q for folder in _v2_folders(root) if (q := _cpu_max(folder)) is not None]
    quotas += [q for folder in _v1_folders(root, "cpu") if (q := _cfs_quota(folder)) is not None]
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> tuple[int, int] | None:
    """The tightest memory limit and the bytes used under it, without reclaimable file cache."""
    found = [
        (limit, _v2_used(folder))
        for folder in _v2_folders(root)
        if (limit := _number(folder / "memory.max")) is not None
    ]
    found += [
        (limit, _v1_used(folder))
        for folder in _v1_folders(root, "memory")
        if (limit := _number(folder / "memory.limit_in_bytes")) is not None and limit < _NO_LIMIT
    ]
    return min(found, key=lambda pair: pair[0] - pair[1], default=None)


def _cpu_max(folder: Path) -> float | None:
    fields = _text(folder / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _cfs_quota(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _v2_used(folder: Path) -> int:
    used = _number(folder / "memory.current") or 0
    return max(0, used - _stat(folder, "inactive_file"))


def _v1_used(folder: Path) -> int:
    used = _number(folder / "memory.usage_in_bytes") or 0
    return max(0, used - _stat(folder, "total_inactive_file"))


def _stat(folder: Path, key: str) -> int:
    pairs = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return next((int(p[1]) for p in pairs if len(p) == 2 and p[0] == key), 0)


def _v2_folders(root: Path) -> Iterator[Path]:
    for mount in _mounts(root):
        if mount.version == 2:
            yield from _upwards(root, mount, _groups(root).get("", "/"))


def _v1_folders(root: Path, controller: str) -> Iterator[Path]:
    for mount in _mounts(root):
        if mount.version == 1 and controller in mount.options:
            yield from _upwards(root, mount, _groups(root).get(controller, "/"))


def _upwards(root: Path, mount: _Mount, group: str) -> Iterator[Path]:
    """The group's folder, if it is visible, and its parents up to the mount point."""
    top = root / mount.point.relative_to("/")
    inside = group.removeprefix(mount.root.rstrip("/")).strip("/")
    folder = top / inside
    if not folder.is_dir():
        folder = top
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


def _groups(root: Path) -> dict[str, str]:
    """This process's group by controller; version 2's under the empty name."""
    groups: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield _Mount(fields[3], Path(fields[4]), frozenset(kind[-1].split(",")), version)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
