"""Whole-file replacement: a reader sees the old text or the new one, never half of either."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_serial = itertools.count()


def write_json_atomic(path: Path, facts: Mapping[str, Any]) -> None:
    """Replace `path` (mode 0600) by `facts` as JSON.

    Raises:
        OSError: the file cannot be written; the old one is intact then.
        ValueError: a number is not finite, which JSON cannot carry.
    """
    text = json.dumps(facts, indent=1, allow_nan=False, default=str) + "\n"
    # Unique per call, so that two threads or processes never write the same temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_serial)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object (torn, or something else).
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, not an object")
    return value
