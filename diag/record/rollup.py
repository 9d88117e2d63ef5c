"""Collectives summed per step, for records that near their size limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diag.record.schema import COLLECTIVES

_COLUMN = {name: position for position, name in enumerate(COLLECTIVES.names)}
_STEP, _GROUP, _OP, _SOURCE = (_COLUMN[c] for c in ("step", "group", "op", "source"))
_BYTES, _DTYPE, _ISSUE = (_COLUMN[c] for c in ("bytes", "dtype", "issue_ns"))
_WAIT, _END = _COLUMN["wait_ns"], _COLUMN["end_ns"]
Row = tuple[Any, ...]


def roll_up(rows: Iterable[Row]) -> list[Row]:
    """One row per step, group, op and source of one flush, in order of first appearance.

    A summed row has no `seq` and no `site`, which is how readers know it. `bytes` is the sum;
    `issue_ns` and `wait_ns` are the first ones, and `end_ns` is set so that `end_ns - wait_ns`
    is the sum of the blocked times (both null when none blocked). `dtype` is null if mixed.
    """
    buckets: dict[Row, list[Row]] = {}
    for row in rows:
        buckets.setdefault((row[_STEP], row[_GROUP], row[_OP], row[_SOURCE]), []).append(row)
    return [_sum(bucket) for bucket in buckets.values()]


def _sum(rows: list[Row]) -> Row:
    blocked = [r for r in rows if r[_WAIT] is not None and r[_END] is not None]
    first_wait = min((r[_WAIT] for r in blocked), default=None)
    dtypes = {r[_DTYPE] for r in rows}
    summed = {
        _STEP: rows[0][_STEP],
        _GROUP: rows[0][_GROUP],
        _OP: rows[0][_OP],
        _SOURCE: rows[0][_SOURCE],
        _BYTES: sum(r[_BYTES] or 0 for r in rows),
        _DTYPE: dtypes.pop() if len(dtypes) == 1 else None,
        _ISSUE: min((r[_ISSUE] for r in rows if r[_ISSUE] is not None), default=None),
        _WAIT: first_wait,
        _END: None if first_wait is None else first_wait + sum(r[_END] - r[_WAIT] for r in blocked),
    }
    return tuple(summed.get(position) for position in range(len(_COLUMN)))
