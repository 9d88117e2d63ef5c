"""Writes run directories from arrays: records whose truth is known, in the recorder's own format.

Whole tables are written at once, so that 64 ranks of 2,000 steps take a second or two.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diag.record.atomic import write_json_atomic
from diag.record.encode import MessageEncoder, RowEncoder, best_compression
from diag.record.rankfiles import block_path
from diag.record.schema import PHASES, SCHEMA_MAJOR, SCHEMA_MINOR, STREAMS
from diag.record.store import RANK_JSON, RunDir

I64 = npt.NDArray[np.int64]
Row = tuple[Any, ...]
EXPOSED = PHASES.index("exposed_comm")
START_NS = 10**12
_BLOCK_ROWS = 4096


def released_together(local_ns: I64, transfer_ns: I64 | int = 0) -> I64:
    """Phases of synchronous training: each step ends on all ranks when the slowest is done.

    Args:
        local_ns: [R, S, 7]; its exposed_comm is ignored.
        transfer_ns: what the synchronization itself takes, [S] or a number.

    Returns:
        [R, S, 7] with exposed_comm filled in, so that all ranks' steps are equally long.
    """
    phases = np.array(local_ns, dtype=np.int64)
    phases[:, :, EXPOSED] = 0
    own = phases.sum(axis=2)
    phases[:, :, EXPOSED] = own.max(axis=0) + transfer_ns - own
    return phases


def write_run(
    runs_dir: Path,
    phases_ns: I64,
    *,
    name: str = "synthetic",
    samples: npt.ArrayLike | None = 32,
    tokens: npt.ArrayLike | None = None,
    flags: npt.ArrayLike = 0,
    probe_ns: int = 20_000,
    num_collectives: int = 1,
    bucket_bytes: int = 2**20,
    events: Mapping[int, Sequence[Row]] | None = None,
    gauges: Mapping[int, Sequence[Row]] | None = None,
    run_facts: Mapping[str, Any] | None = None,
    rank_facts: Mapping[str, Any] | None = None,
    restart: int = 0,
) -> Path:
    """Write a complete, cleanly ended run and return its directory.

    Args:
        phases_ns: [R, S, 7], in the order of PHASES.
        samples, tokens, flags: broadcast to [R, S]; None is null.
        num_collectives: waits per step, evenly spaced, sharing the step's exposed time; the
            last one ends with the step. 0: none.
        events, gauges: rows by rank; without gauges, one a second with 1 GiB resident.
        run_facts, rank_facts: laid over the defaults.
    """
    num_ranks, num_steps, _ = phases_ns.shape
    run = RunDir(runs_dir / name)
    run.ranks.mkdir(parents=True)
    shape = (num_ranks, num_steps)
    for rank in range(num_ranks):
        directory = run.rank_dir(rank, restart)
        directory.mkdir(mode=0o700)
        ends = START_NS + np.cumsum(phases_ns[rank].sum(axis=1))
        starts = np.concatenate([[START_NS], ends[:-1]])
        columns = {
            "steps": _steps(
                phases_ns[rank], starts, ends,
                samples=_pick(samples, shape, rank), tokens=_pick(tokens, shape, rank),
                flags=_pick(flags, shape, rank), probe_ns=probe_ns,
            ),
            "collectives": _collectives(
                phases_ns[rank, :, EXPOSED], starts, ends, num_collectives, bucket_bytes
            ),
        }  # fmt: skip
        last = int(ends[-1]) if num_steps else START_NS
        for stream, batch in columns.items():
            write_stream(directory, stream, batch)
        write_rows(directory, "events", (events or {}).get(rank, ()))
        write_rows(directory, "gauges", (gauges or {}).get(rank) or _default_gauges(last))
        facts = _rank_facts(rank, num_ranks, num_steps, last) | {"restart": restart}
        write_json_atomic(directory / RANK_JSON, facts | dict(rank_facts or {}))
    run.write_run_json(_run_facts(name, num_ranks, num_steps) | dict(run_facts or {}))
    return run.path


def write_stream(directory: Path, name: str, batch: pa.RecordBatch) -> None:
    """Write one whole stream in blocks, with its end mark."""
    encoder = MessageEncoder(STREAMS[name], best_compression())
    parts = []
    for first in range(0, len(batch), _BLOCK_ROWS):
        # A slice shares its buffers with the whole; a checksum needs its own.
        following = min(first + _BLOCK_ROWS, len(batch))
        block = batch.take(pa.array(np.arange(first, following)))
        parts.append(encoder.encode(block, first, following))
    block_path(directory, name).write_bytes(b"".join([*parts, encoder.finish()]))


def write_rows(directory: Path, name: str, rows: Sequence[Row]) -> None:
    """The same from rows."""
    schema = STREAMS[name]
    batch = RowEncoder(schema).batch(rows)
    assert len(batch) == len(rows), f"rows do not fit the schema of {name}"
    write_stream(directory, name, batch)


def _pick(value: npt.ArrayLike | None, shape: tuple[int, int], rank: int) -> I64 | None:
    return None if value is None else np.broadcast_to(np.asarray(value, np.int64), shape)[rank]


def _steps(
    phases_ns: I64,
    starts: I64,
    ends: I64,
    *,
    samples: I64 | None,
    tokens: I64 | None,
    flags: I64 | None,
    probe_ns: int,
) -> pa.RecordBatch:
    count = len(starts)
    values: dict[str, Any] = {
        "index": np.arange(count),
        "start_ns": starts,
        "end_ns": ends,
        "samples": samples,
        "tokens": tokens,
        "micro_batches": np.ones(count),
        "probe_ns": np.full(count, probe_ns),
        "flags": flags,
        **{f"{phase}_ns": phases_ns[:, p] for p, phase in enumerate(PHASES)},
    }
    return _batch("steps", count, values)


def _collectives(exposed: I64, starts: I64, ends: I64, num: int, size: int) -> pa.RecordBatch:
    """`num` waits a step; wait j ends at (j + 1) / num of the step."""
    steps = len(starts)
    part = np.arange(1, num + 1)
    end = starts[:, None] + (ends - starts)[:, None] * part // max(num, 1)
    blocked = exposed[:, None] * part // max(num, 1)
    blocked = np.diff(blocked, axis=1, prepend=0)
    wait = end - blocked
    position = np.tile(np.arange(num), steps)
    values: dict[str, Any] = {
        "step": np.repeat(np.arange(steps), num),
        "group": _constant("ddp:0", steps * num),
        "seq": np.arange(steps * num),
        "op": _constant("all_reduce", steps * num),
        "bytes": np.full(steps * num, size),
        "dtype": _constant("float32", steps * num),
        "issue_ns": wait.ravel(),
        "wait_ns": wait.ravel(),
        "end_ns": end.ravel(),
        "site": (position, [f"bucket {j}" for j in range(num)]),
        "source": _constant("ddp", steps * num),
        "root": None,
    }
    return _batch("collectives", steps * num, values)


def _constant(name: str, count: int) -> tuple[I64, list[str]]:
    return np.zeros(count, np.int64), [name]


def _batch(stream: str, count: int, values: Mapping[str, Any]) -> pa.RecordBatch:
    schema = STREAMS[stream]
    arrays = []
    for field in schema:
        value = values[field.name]
        if value is None:
            arrays.append(pa.nulls(count, field.type))
        elif pa.types.is_dictionary(field.type):
            indices = pa.array(value[0]).cast(field.type.index_type)
            arrays.append(pa.DictionaryArray.from_arrays(indices, pa.array(value[1], pa.string())))
        else:
            arrays.append(pa.array(value).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _default_gauges(last_ns: int) -> list[Row]:
    names = STREAMS["gauges"].names
    known = {"peak_bytes": 2**30, "rss_bytes": 2**30, "allocated_bytes": 0, "reserved_bytes": 0}
    return [
        tuple(time if column == "time_ns" else known.get(column) for column in names)
        for time in itertools.chain(range(START_NS, last_ns, 10**9), [last_ns])
    ]


def _rank_facts(rank: int, num_ranks: int, num_steps: int, last_ns: int) -> dict[str, Any]:
    return {
        "schema": {"major": SCHEMA_MAJOR, "minor": SCHEMA_MINOR},
        "rank": rank,
        "local_rank": rank,
        "node": 0,
        "host": "synthetic",
        "pid": 1000 + rank,
        "world_size": num_ranks,
        "strategy": "ddp" if num_ranks > 1 else "none",
        "backend": "gloo" if num_ranks > 1 else None,
        "precision": "float32",
        "num_parameters": 1_000_000,
        "parameter_bytes": 4_000_000,
        "gradient_groups": [num_ranks] if num_ranks > 1 else [],
        "groups": {"ddp:0": list(range(num_ranks))},
        "local_sgd": False,
        "capabilities": {},
        "start_ns": START_NS - 5 * 10**9,
        "ready_ns": START_NS - 2 * 10**9,
        "first_step_ns": START_NS,
        "last_step_ns": last_ns,
        "end_ns": last_ns + 10**8,
        "steps": num_steps,
        "ended": "script",
        "error": None,
        "probe_failures": {},
        "samples_source": "loader",
        "samples_problem": None,
        "rolled_up_collectives": None,
    }


def _run_facts(name: str, num_ranks: int, num_steps: int) -> dict[str, Any]:
    return {
        "schema": {"major": SCHEMA_MAJOR, "minor": SCHEMA_MINOR},
        "name": name,
        "created": "2026-01-01T00:00:00+00:00",
        "argv": ["diag", "run", "train.py"],
        "script": "train.py",
        "script_sha256": "0" * 64,
        "script_args": [],
        "module": False,
        "mode": "attach",
        "device": "cpu",
        "device_name": "cpu",
        "rehearsal": True,
        "backend": "gloo",
        "world_size": num_ranks,
        "nnodes": 1,
        "nproc_per_node": num_ranks,
        "threads": 1,
        "cores": 64,
        "max_steps": None,
        "probes": "on",
        "samples_per_step": None,
        "role": "run" if num_ranks > 1 else "baseline",
        "versions": {"diag": "0.1.0", "python": "3.11.0", "torch": "2.13.0"},
        "env": {},
        "restarts": 0,
        "started_ns": START_NS - 6 * 10**9,
        "launch_ns": START_NS - 5 * 10**9,
        "ended_ns": START_NS + num_steps * 10**9,
        "ended_by": "script",
        "exit_code": 0,
        "launcher_pid": 999,
    }
