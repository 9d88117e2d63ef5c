"""Settings that change how torch and NCCL behave: by allow-list, never the whole environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from diag.doctor.facts import Setting, Settings

_PREFIXES = ("NCCL_", "TORCH_", "CUDA_", "GLOO_", "OMP_", "MKL_", "PYTORCH_", "NVIDIA_VISIBLE_")


def read_settings(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Settings:
    """The environment's settings, then those of NCCL's files which it does not override.

    NCCL reads the user's file before the system's and keeps the first value it meets
    (its user guide, "Environment Variables").
    """
    entries = [
        Setting(name, value, "environment")
        for name, value in sorted(environ.items())
        if name.startswith(_PREFIXES)
    ]
    for entry in _file_entries(environ, root):
        if all(entry.name != known.name for known in entries):
            entries.append(entry)
    return Settings(tuple(entries))


def _file_entries(environ: Mapping[str, str], root: Path) -> Iterator[Setting]:
    home = environ.get("HOME")
    user = environ.get("NCCL_CONF_FILE") or (home and f"{home}/.nccl.conf")
    for path in filter(None, [user, str(root / "etc/nccl.conf")]):
        yield from _parse(Path(path))


def _parse(path: Path) -> Iterator[Setting]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield Setting(name.strip(), value.strip(), str(path))
