"""What a record holds: the words, the columns, the files.

A run is one directory; each rank appends to files of its own below it::

    diag-runs/<name>/
        run.json                          the launcher's facts (RUN_FACTS below)
        ranks/00003-0/                    rank 3, restart 0
            rank.json                     the rank's facts, rewritten whole
            heartbeat                     one small memory-mapped page
            steps.arrows … events.arrows  Arrow IPC streams, append-only, compressed blocks
            tail.jsonl                    the rows since the last blocks, as lines of JSON;
                                          gone once the rank has closed its record
        logs/                             every rank's output
        anchors are rows of events: kind "anchor", detail {"monotonic_ns", "realtime_ns"}

Times are CLOCK_MONOTONIC nanoseconds of the rank's own node; an anchor event per flush
ties them to the wall clock. Durations are nanoseconds, sizes bytes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pyarrow as pa

# 1.0  first version: steps, collectives, gauges, events, rank.json, run.json.
# A reader accepts every minor of its major and refuses a newer major by name.
SCHEMA_MAJOR = 1
SCHEMA_MINOR = 0


class Phase(IntEnum):
    """Every instant of a rank's step has exactly one of these labels."""

    DATA = 0
    COPY = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4
    EXPOSED_COMM = 5
    HOST = 6

    @property
    def label(self) -> str:
        return self.name.lower()


PHASES: tuple[str, ...] = tuple(p.label for p in Phase)
# Self-time A is the step minus this phase.
LOCAL_PHASES: tuple[str, ...] = tuple(p for p in PHASES if p != "exposed_comm")


class StepFlag(IntFlag):
    """Why a step may have to be left out; set at capture, never guessed from its duration."""

    NONE = 0
    WARM_UP = 1  # the probes were still finding their seams, or torch still compiling
    PROFILED = 2  # torch.profiler, or a diag sampling window, was active
    CHECKPOINT = 4  # something was saved or loaded inside this step
    EVALUATION = 8  # a forward in eval mode ran inside this step
    SKIPPED = 16  # the loss scaler skipped the update; still a step
    UNSYNCED = 32  # no gradient synchronization released this step


STEPS = pa.schema(
    [
        ("index", pa.int64()),  # optimizer steps since the start, 0-based
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        *[(f"{p}_ns", pa.int64()) for p in PHASES],  # sum to end_ns - start_ns exactly
        ("samples", pa.int64()),  # null: unknown or inconsistent
        ("tokens", pa.int64()),  # null: not a token model
        ("micro_batches", pa.int32()),
        ("probe_ns", pa.int64()),  # the probes' own time a step, timed in every eighth
        ("flags", pa.int32()),  # StepFlag
    ]
)

# One row per collective this rank took part in. `seq` counts per group and kind, so that
# (group, seq) names the same collective on every rank.
COLLECTIVES = pa.schema(
    [
        ("step", pa.int64()),
        ("group", pa.dictionary(pa.int16(), pa.string())),
        ("seq", pa.int64()),
        ("op", pa.dictionary(pa.int16(), pa.string())),
        ("bytes", pa.int64()),
        ("dtype", pa.dictionary(pa.int16(), pa.string())),
        ("issue_ns", pa.int64()),  # arrival: when this rank handed it to the backend
        ("wait_ns", pa.int64()),  # when the rank began to block on it; null: never blocked
        ("end_ns", pa.int64()),  # when the block was released; null: never blocked
        ("site", pa.dictionary(pa.int32(), pa.string())),  # "file:line", or "bucket 3"
        ("source", pa.dictionary(pa.int8(), pa.string())),  # SOURCES
        # The global rank whose data the others wait for (broadcast, scatter), while it waits
        # for nobody; null: everybody waits for everybody.
        ("root", pa.int32()),
    ]
)
# How a collective was seen. "python": a ProcessGroup method; "functional": a functional
# collective's wait; "ddp": the wait at the end of a DDP backward; "buffers": DDP's buffer
# broadcast; "flight": the flight recorder's arrivals (never blocked, never part of a phase).
SOURCES = ("python", "functional", "ddp", "buffers", "flight")

GAUGES = pa.schema(
    [
        ("time_ns", pa.int64()),
        ("allocated_bytes", pa.int64()),
        ("reserved_bytes", pa.int64()),
        ("peak_bytes", pa.int64()),  # peak device memory on CUDA, peak RSS on CPU
        ("rss_bytes", pa.int64()),
        ("gpu_utilisation", pa.float32()),  # 0..1
        ("sm_clock_mhz", pa.float32()),
        ("power_w", pa.float32()),
        ("temperature_c", pa.float32()),
        ("throttle_reasons", pa.int64()),  # NVML's bit mask
        ("runqueue_wait_ns", pa.int64()),  # cumulative, /proc/<pid>/schedstat
        ("cpu_ns", pa.int64()),  # cumulative process CPU time
    ]
)

# kinds: anchor, gc, alloc_retry, checkpoint, evaluation, epoch, probe_failure, samples, rollup
# Written by the recorder itself:
#   anchor         {"monotonic_ns", "realtime_ns"}
#   rollup         {"what": "summed"|"stopped", "from_step", "max_bytes"}: the size limit nears, or
#                  is reached. A summed row of collectives has neither seq nor site; its
#                  end_ns - wait_ns is the blocked time of all it stands for
#   probe_failure  {"where": "record", "count", "lost_rows", "reason"}
EVENTS = pa.schema(
    [
        ("time_ns", pa.int64()),
        ("duration_ns", pa.int64()),
        ("step", pa.int64()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("detail", pa.string()),  # JSON object
    ]
)

STREAMS: dict[str, pa.Schema] = {
    "steps": STEPS,
    "collectives": COLLECTIVES,
    "gauges": GAUGES,
    "events": EVENTS,
}

# run.json, written by the launcher before the ranks start and completed at the end:
#   schema {"major","minor"}, name, created (ISO 8601), argv (redacted), script, script_sha256,
#   script_args, module, mode, device ("cpu"|"cuda"), device_name, rehearsal, backend, world_size,
#   nnodes, nproc_per_node, threads, cores, max_steps, probes, samples_per_step, role
#   ("run"|"baseline"), versions {diag, python, torch, …}, env {allow-listed}, restarts,
#   started_ns, launch_ns (monotonic: command start, ranks started), ended_ns, ended_by
#   ("script"|"hang"|"diag"|"signal"|"max-steps", null while running), exit_code, launcher_pid
# rank.json, written by the rank at start, at the first step and at the end:
#   rank, local_rank, node, host, pid, restart, strategy ("ddp"|"fsdp"|"none"|"manual"), backend,
#   precision ("float32", "bfloat16", "bfloat16-autocast", …), num_parameters, parameter_bytes,
#   gradient_groups [group sizes that reduced gradients], local_sgd bool, capabilities
#   {flag: bool}, start_ns (process start), ready_ns (script started), first_step_ns, last_step_ns,
#   end_ns (script ended), steps, ended ("script"|"exception"|"max-steps"|null while running),
#   error {type, message, file, line, function}|null, probe_failures {where: count},
#   samples_source, samples_problem, rolled_up_collectives, sites {phase: "file:line"}
