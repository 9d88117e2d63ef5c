"""Control groups of both versions, read from trees as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from diag.doctor.facts_cgroup import cpu_quota, memory_limit

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNLIMITED_V1 = "9223372036854771712\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    slice_ = "sys/fs/cgroup/user.slice"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{slice_}/job/cpu.max": "800000 100000\n",
            f"{slice_}/job/memory.max": f"{16 * GIB}\n",
            f"{slice_}/job/memory.current": f"{2 * GIB}\n",
            f"{slice_}/cpu.max": "250000 100000\n",
            f"{slice_}/memory.max": f"{8 * GIB}\n",
            f"{slice_}/memory.current": f"{6 * GIB}\n",
            f"{slice_}/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        },
    )
    assert cpu_quota(root) == 2.5
    assert memory_limit(root) == (8 * GIB, 5 * GIB)


def test_version_2_without_limits(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert cpu_quota(root) is None
    assert memory_limit(root) is None


def version_1(root: Path, quota: str, limit: str) -> Path:
    """A container's view: its own group is mounted as the root of each hierarchy."""
    group = "/docker/abc"
    return write(
        root,
        {
            "proc/self/cgroup": f"5:memory:{group}\n4:cpu,cpuacct:{group}\n0::/\n",
            "proc/self/mountinfo": V1_CPU.format(root=group) + V1_MEMORY.format(root=group),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": quota,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {2 * GIB}\n",
        },
    )


def test_version_1_in_a_container(tmp_path: Path) -> None:
    root = version_1(tmp_path, "200000\n", f"{4 * GIB}\n")
    assert cpu_quota(root) == 2.0
    assert memory_limit(root) == (4 * GIB, GIB)


def test_version_1_without_limits(tmp_path: Path) -> None:
    root = version_1(tmp_path, "-1\n", UNLIMITED_V1)
    assert cpu_quota(root) is None
    assert memory_limit(root) is None


def test_a_group_whose_path_is_not_visible_falls_back_to_the_mount(tmp_path: Path) -> None:
    root = version_1(tmp_path, "150000\n", UNLIMITED_V1)
    write(root, {"proc/self/cgroup": "4:cpu,cpuacct:/somewhere/else\n"})
    assert cpu_quota(root) == 1.5


@pytest.mark.parametrize("text", ["", "0::\n", "garbage", "::::\n"])
def test_unreadable_or_odd_groups_mean_no_limit(tmp_path: Path, text: str) -> None:
    root = write(tmp_path, {"proc/self/cgroup": text, "proc/self/mountinfo": V2_MOUNT})
    assert cpu_quota(root) is None
    assert memory_limit(root) is None
    assert cpu_quota(tmp_path / "nothing") is None
