"""From a record to arrays: a Run becomes a Panel.

Ranks are aligned on the step numbers all of them have. Nothing here judges; what could not be
aligned becomes a sentence in `Panel.warnings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from diag.record.reader import RankRecord, Run
from diag.record.schema import PHASES, SOURCES
from diag.reports.panel import F64, I64, Panel, Waits

_PHASE_COLUMNS = tuple(f"{phase}_ns" for phase in PHASES)


@dataclass(frozen=True)
class _Steps:
    """One rank's steps, row by row; [S], phases [S, 7]."""

    index: I64
    start_ns: I64
    end_ns: I64
    phases_ns: I64
    samples: F64
    tokens: F64
    flags: I64
    probe_ns: I64


def load_panel(run: Run) -> Panel:
    """Align the ranks of `run`, their steps and their waits. Peak memory: about the record's own."""
    records, without = _split(run)
    ranks = [_steps(record.steps) for record in records]
    common = reduce(np.intersect1d, [s.index for s in ranks]) if ranks else np.zeros(0, np.int64)
    rows = [np.searchsorted(s.index, common) for s in ranks]
    picked = list(zip(ranks, rows, strict=True))
    return Panel(
        ranks=tuple(record.rank for record in records),
        index=common,
        start_ns=np.stack([s.start_ns[row] for s, row in picked]),
        end_ns=np.stack([s.end_ns[row] for s, row in picked]),
        phases_ns=np.stack([s.phases_ns[row] for s, row in picked]),
        samples=np.stack([s.samples[row] for s, row in picked]),
        tokens=np.stack([s.tokens[row] for s, row in picked]),
        flags=np.stack([s.flags[row] for s, row in picked]),
        probe_ns=np.stack([s.probe_ns[row] for s, row in picked]),
        waits=_all_waits(run, records, common),
        warnings=(*without, *_warnings(records, ranks, len(common))),
    )


def _split(run: Run) -> tuple[list[RankRecord], tuple[str, ...]]:
    """The ranks to align, and a sentence about those that recorded no step at all.

    Left in, such a rank would leave no common step. If none has a step, all are kept.
    """
    records = list(run.ranks.values())
    stepped = [r for r in records if r.steps.num_rows]
    if not stepped or len(stepped) == len(records):
        return records, ()
    idle = [r.rank for r in records if not r.steps.num_rows]
    noun = "rank" if len(idle) == 1 else "ranks"
    return stepped, (f"{noun} {_listed(idle)} recorded no step and cannot be compared",)


def _steps(table: pa.Table) -> _Steps:
    # Sorted and without repeats in every record a rank wrote; made so here for all others.
    index, first = np.unique(_ints(table["index"]), return_index=True)
    columns = [_ints(table[name])[first] for name in _PHASE_COLUMNS]
    return _Steps(
        index=index,
        start_ns=_ints(table["start_ns"])[first],
        end_ns=_ints(table["end_ns"])[first],
        phases_ns=np.stack(columns, axis=1),
        samples=_floats(table["samples"])[first],
        tokens=_floats(table["tokens"])[first],
        flags=_ints(table["flags"])[first],
        probe_ns=_ints(table["probe_ns"])[first],
    )


def _positions(numbers: I64, ranks: I64) -> I64:
    """Where each number stands in the increasing `ranks`; -1 where it does not."""
    at = np.minimum(np.searchsorted(ranks, numbers), len(ranks) - 1)
    return np.where(ranks[at] == numbers, at, -1)


def _ints(column: pa.ChunkedArray, null: int = 0) -> I64:
    """Whole numbers, with `null` for what is missing."""
    filled = column.fill_null(null) if column.null_count else column
    return np.asarray(filled.to_numpy(), dtype=np.int64)


def _floats(column: pa.ChunkedArray) -> F64:
    """Null becomes NaN."""
    return np.asarray(column.to_numpy(), dtype=np.float64)


# -- waits --------------------------------------------------------------------------------


def _all_waits(run: Run, records: Sequence[RankRecord], common: I64) -> tuple[Waits, ...]:
    if not any(r.collectives.num_rows for r in records):
        return ()
    codes = _Codes(run)
    ranks = np.asarray([record.rank for record in records], np.int64)
    return tuple(_waits(r.collectives, common, codes, ranks) for r in records)


class _Codes:
    """Numbers for group names and sources that are the same on all ranks."""

    def __init__(self, run: Run) -> None:
        self._number: dict[str, int] = {source: n for n, source in enumerate(SOURCES)}
        self._sizes = _group_sizes(run)
        self._world_size = run.world_size

    def renumber(self, column: pa.ChunkedArray) -> I64:
        """Dictionary column to shared numbers, [rows]."""
        array = _one_chunk(column)
        names = array.dictionary.to_pylist()
        shared = [self._number.setdefault(name, len(self._number)) for name in names]
        return np.asarray([*shared, -1], np.int64)[_codes(array)]

    def world(self, column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each row's group is all ranks; a group nobody described is taken as such."""
        array = _one_chunk(column)
        names = array.dictionary.to_pylist()
        spans = [self._sizes.get(name, self._world_size) == self._world_size for name in names]
        return np.asarray([*spans, False], np.bool_)[_codes(array)]


def _one_chunk(column: pa.ChunkedArray) -> pa.DictionaryArray:
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _codes(array: pa.DictionaryArray) -> I64:
    """A null row has the last position, -1."""
    return np.asarray(array.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def _group_sizes(run: Run) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for record in run.ranks.values():
        groups = record.facts.get("groups")
        for name, members in groups.items() if isinstance(groups, dict) else ():
            if isinstance(members, list):
                sizes[name] = max(sizes.get(name, 0), len(members))
    return sizes


def _waits(table: pa.Table, common: I64, codes: _Codes, ranks: I64) -> Waits:
    """The rank's waits inside the common steps; per-step sums (without `seq`) name no collective."""
    step = _ints(table["step"])
    slot = np.searchsorted(common, step)
    inside = slot < len(common)
    inside[inside] = common[slot[inside]] == step[inside]
    rows = np.flatnonzero(
        inside & _valid(table["step"], table["seq"], table["wait_ns"], table["end_ns"])
    )
    wait = _ints(table["wait_ns"])
    rows = rows[np.argsort(wait[rows], kind="stable")]
    wait = wait[rows]
    issue = _ints(table["issue_ns"])
    # A row without an arrival was seen only when it was waited for.
    issue = np.where(_valid(table["issue_ns"]), issue, np.iinfo(np.int64).max)[rows]
    return Waits(
        key=_keys(table, codes)[rows],
        step=slot[rows].astype(np.int64),
        issue_ns=np.minimum(issue, wait),
        wait_ns=wait,
        end_ns=np.maximum(_ints(table["end_ns"])[rows], wait),
        world=codes.world(table["group"])[rows],
        root=_positions(_ints(table["root"], null=-1)[rows], ranks),
    )


def _valid(*columns: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    masks = [np.asarray(c.is_valid().to_numpy(), np.bool_) for c in columns]
    return reduce(np.logical_and, masks)


def _keys(table: pa.Table, codes: _Codes) -> I64:
    """One number per (group, seq, source), equal on all ranks: seq above, names below."""
    names = codes.renumber(table["group"]) * 2**8 + codes.renumber(table["source"])
    return _ints(table["seq"]) * 2**24 + names


# -- what a reader should know ------------------------------------------------------------


def _warnings(records: Sequence[RankRecord], ranks: Sequence[_Steps], num: int) -> Iterable[str]:
    most = max((len(s.index) for s in ranks), default=0)
    fewer = [
        (r.rank, len(s.index)) for r, s in zip(records, ranks, strict=True) if len(s.index) < most
    ]
    if fewer:
        rank, least = min(fewer, key=lambda item: item[1])
        yield (
            f"the ranks recorded different numbers of steps (rank {rank}: {least:,}, others up to "
            f"{most:,}); only the {num:,} that all of them have are compared"
        )
    elif num < most:
        yield f"the ranks recorded different steps; only the {num:,} of {most:,} in common are compared"
    odd = [r.rank for r, s in zip(records, ranks, strict=True) if not _sums(s)]
    if odd:
        yield f"the phases of some steps do not add up to the step (rank {_listed(odd)})"


def _sums(steps: _Steps) -> bool:
    return bool((steps.phases_ns.sum(axis=1) == steps.end_ns - steps.start_ns).all())


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"
