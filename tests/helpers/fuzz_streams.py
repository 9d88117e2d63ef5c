"""Damages a rank's files at random and reads them; run as a module, so that a crash shows.

    python -m helpers.fuzz_streams DIRECTORY SEED COUNT

Prints one JSON object: how many reads, how many gave fewer rows than were written, and the
growth of peak memory in MiB. Exits by assertion if a row comes back that was never written.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

from diag.record.streamreader import read_streams


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with its end cut, zeroed, or replaced, or some bytes anywhere flipped."""
    at = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:  # what a power cut leaves
        return data[:at] + bytes(len(data) - at)
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 64)) + data[at:][rng.randrange(64) :]
    if kind == 3:  # the largest lengths there are
        return data[:at] + b"\xff\xff\xff\x7f" * rng.randrange(1, 4) + data[at + 4 :]
    changed = bytearray(data)
    if kind == 4:  # a length of 64 GiB wherever one may stand
        at -= at % 8
        changed[at : at + 8] = (2**36).to_bytes(8, "little")
        return bytes(changed)
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def rows_in(directory: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: t.to_pylist() for name, t in read_streams(directory).tables.items()}


def main(directory: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    written = rows_in(directory)
    copy = directory.with_name("damaged")
    shutil.copytree(directory, copy)
    names = ("*.arrows", "tail.jsonl")
    files = sorted(p for name in names for p in directory.glob(name) if p.stat().st_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shorter = 0
    for _ in range(count):
        victim = rng.choice(files)
        (copy / victim.name).write_bytes(damaged(victim.read_bytes(), rng))
        found = rows_in(copy)
        for name, rows in found.items():
            known = iter(written[name])
            assert all(row in known for row in rows), f"seed {seed}: {victim.name}: a false row"
        shorter += any(len(found[name]) < len(rows) for name, rows in written.items())
        shutil.copy(victim, copy / victim.name)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"reads": count, "shorter": shorter, "grown_mib": grown}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
