"""What one rank's collectives move in a used step, and where in the user's code it blocks longest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diag.record.reader import RankRecord, Run
from diag.reports.findings.case import NS_PER_MS, Traffic
from diag.reports.locations import parse_site
from diag.reports.model import Location
from diag.reports.panel import Bool, Panel


def load_traffic(run: Run, panel: Panel, used: Bool) -> Traffic | None:
    """Of the lowest rank; None where no collective was recorded in the used steps."""
    steps = panel.index[used]
    for rank in panel.ranks:
        record = run.ranks[rank]
        if record.collectives.num_rows and len(steps):
            return _of(record, steps)
    return None


def _of(record: RankRecord, steps: np.ndarray) -> Traffic | None:
    table = record.collectives
    sources = _words(table["source"])
    # The flight recorder sees the same collectives a second time.
    rows = np.isin(_ints(table["step"]), steps) & (sources != "flight")
    if not rows.any():
        return None
    sizes = _ints(table["bytes"])[rows]
    gradients = rows & (sources == "ddp") & (_ints(table["bytes"]) == 0)
    moved = float(sizes.sum()) + _gradient_bytes(record) * int(gradients.sum())
    site, site_ms = _longest(table, rows & (sources != "ddp"), len(steps))
    return Traffic(moved / len(steps), float(rows.sum()) / len(steps), site, site_ms)


def _gradient_bytes(record: RankRecord) -> float:
    """What DDP reduces at the end of a backward: its buckets leave from C++, unseen one by one."""
    size = record.facts.get("parameter_bytes")
    return float(size) if isinstance(size, (int, float)) else 0.0


def _longest(
    table: pa.Table, rows: np.ndarray, num_steps: int
) -> tuple[Location | None, float | None]:
    """The "file:line" with the most blocked time, and its ms per step."""
    sites = _words(table["site"])
    blocked = (_ints(table["end_ns"]) - _ints(table["wait_ns"])) / NS_PER_MS
    best: tuple[Location | None, float | None] = (None, None)
    for site in set(sites[rows].tolist()):
        location = parse_site(site)
        ms = float(blocked[rows & (sites == site)].sum()) / num_steps
        if location is not None and ms > (best[1] or 0.0):
            best = (location, ms)
    return best


def _ints(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.fill_null(0).to_numpy(), np.int64)


def _words(column: pa.ChunkedArray) -> np.ndarray:
    """A dictionary column as an array of str; null is ""."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    names = np.asarray([*(name or "" for name in array.dictionary.to_pylist()), ""], object)
    codes = array.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(names[codes])
