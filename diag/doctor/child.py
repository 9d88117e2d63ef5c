"""Asks one source and prints its answer as one JSON line: ``python -m diag.doctor.child NAME``.

``facts`` prints all facts of this machine: the way to make a recording for the tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from diag.doctor import codec
from diag.doctor.facts_gpu import read_nvml
from diag.doctor.facts_host import read_file_system
from diag.doctor.facts_torch import read_runtime
from diag.doctor.sources import guarded

SOURCES: dict[str, Callable[..., object]] = {
    "nvml": read_nvml,
    "torch": read_runtime,
    "file-system": lambda path: read_file_system(Path(path)),
}


def main(name: str, *args: str) -> int:
    if name == "facts":
        from diag.doctor.collect import collect
        from diag.record.store import default_runs_dir

        sys.stdout.write(codec.dumps(collect(default_runs_dir())))
        return 0
    answer = guarded(lambda: SOURCES[name](*args))
    print(json.dumps(codec.encode(answer)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
