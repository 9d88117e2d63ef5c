"""Options and hardware in, one frozen plan out: which device, how many ranks, what environment.

Pure: nothing here looks at the machine, so each rule is a test on literal facts.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diag.errors import DiagError, UsageError
from diag.launch.hardware import Hardware
from diag.launch.options import RunOptions, check_numbers

# Far more ranks than cores never finish starting (each imports torch); this is a typing error.
_MOST_RANKS_PER_CORE = 32

# An accelerator that a script would pick by itself must not be there in a rehearsal, and
# Accelerate takes gloo on CPU only when told so.
_REHEARSAL_ENV = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@dataclass(frozen=True)
class Endpoint:
    """Where the nodes meet."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class LaunchPlan:
    """What will be started on this node.

    Attributes:
        nproc: ranks on this node; the world is nproc times nnodes.
        threads: OMP threads per rank.
        endpoint: where nodes meet, None on a single node (127.0.0.1, a free port).
        notes: lines for the user, before the ranks start.
        env: set in every rank's environment, over what is inherited.
    """

    device: Literal["cuda", "cpu"]
    device_name: str
    backend: Literal["nccl", "gloo"]
    rehearsal: bool
    nproc: int
    nnodes: int
    node_rank: int
    threads: int
    cores: int
    endpoint: Endpoint | None
    rdzv_id: str
    max_restarts: int
    notes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.nproc * self.nnodes


def make_plan(options: RunOptions, hardware: Hardware, environ: Mapping[str, str]) -> LaunchPlan:
    """Decide how to run `options` on `hardware`, given the launcher's own environment.

    Raises:
        UsageError: the options cannot be met (more GPUs than present, no endpoint …).
        DiagError: `gpu-unusable` and its kin: this machine should have a GPU and has none to use.
    """
    check_numbers(options)
    device = choose_device(options, hardware)
    nproc = options.gpus or (len(hardware.visible) if device == "cuda" else 1)
    _check_count(options, hardware, device, nproc)
    threads = options.threads or _default_threads(device, environ)
    nnodes, node_rank, endpoint = _nodes(options, environ)
    cuda = device == "cuda"
    return LaunchPlan(
        device=device,
        device_name=hardware.visible[0] if cuda else hardware.cpu_name,
        backend="nccl" if cuda else "gloo",
        rehearsal=not cuda,
        nproc=nproc,
        nnodes=nnodes,
        node_rank=node_rank,
        threads=threads,
        cores=hardware.cores,
        endpoint=endpoint,
        rdzv_id=options.rdzv_id or ("diag" if endpoint else uuid.uuid4().hex[:12]),
        max_restarts=options.max_restarts,
        notes=() if cuda else rehearsal_notes(options, hardware, nproc, threads),
        env=_env(device, threads, nnodes, environ),
    )


def choose_device(options: RunOptions, hardware: Hardware) -> Literal["cuda", "cpu"]:
    """The device by the rules of `diag run`: never a silent CPU run on a broken GPU node."""
    if options.device == "cpu":
        return "cpu"
    if hardware.visible:
        _check_torch(hardware)
        return "cuda"
    if hardware.gpus:
        raise _unusable(
            "gpus-hidden",
            f"this machine has {_gpus(len(hardware.gpus))}, but CUDA_VISIBLE_DEVICES="
            f"{hardware.visible_devices!r} shows none of them",
        )
    if hardware.driver:
        raise _unusable(
            "gpu-unusable", f"no GPU can be used here, although {', '.join(hardware.driver)}"
        )
    if options.device == "cuda":
        raise UsageError(
            "no-gpu",
            "--device cuda, but this machine has no NVIDIA device and no driver",
            "run `diag doctor`, or rehearse on CPU ranks with --device cpu",
        )
    return "cpu"


def _check_torch(hardware: Hardware) -> None:
    if hardware.torch_cuda == "":
        raise _unusable(
            "torch-without-cuda",
            f"this machine has {_gpus(len(hardware.gpus))}, but the installed torch is a build "
            "without CUDA",
        )


def _unusable(slug: str, what: str) -> DiagError:
    return DiagError(slug, what, "run `diag doctor`, or rehearse on CPU ranks with --device cpu")


def _check_count(options: RunOptions, hardware: Hardware, device: str, nproc: int) -> None:
    present = len(hardware.visible)
    if device == "cuda" and nproc > present:
        hidden = len(hardware.gpus) - present
        raise UsageError(
            "too-few-gpus",
            f"--gpus {nproc}, but this machine has {_gpus(present)}"
            + (f" visible ({hidden} hidden by CUDA_VISIBLE_DEVICES)" if hidden > 0 else ""),
            f"use --gpus {present}, or rehearse {nproc} ranks on CPU with --device cpu",
        )
    most = _MOST_RANKS_PER_CORE * hardware.cores
    if device == "cpu" and nproc > most:
        raise UsageError(
            "too-many-ranks",
            f"--gpus {nproc}: a rehearsal of {nproc} ranks on {_cores(hardware.cores)} would "
            f"never start; the limit is {most}",
        )


def _default_threads(device: str, environ: Mapping[str, str]) -> int:
    # One, as torchrun does, and never a share of the cores: a 1-rank baseline would get more
    # threads than the run it is compared with.
    inherited = environ.get("OMP_NUM_THREADS", "")
    if device == "cuda" and inherited.isdecimal() and int(inherited) > 0:
        return int(inherited)
    return 1


def rehearsal_notes(
    options: RunOptions, hardware: Hardware, nproc: int, threads: int
) -> tuple[str, ...]:
    """The line that says this is no GPU run, and a second one when cores are short."""
    why = "as asked" if options.device == "cpu" else "no NVIDIA GPU here"
    ranks = f"{nproc} CPU rank{'s' if nproc > 1 else ''} with gloo"
    each = f"{threads} thread{'s' if threads > 1 else ''} each"
    line = f"rehearsal ({why}): {ranks}, {each}"
    if nproc * threads <= hardware.cores:
        return (line,)
    cores = _cores(hardware.cores)
    return (line, f"{nproc * threads} threads share {cores}, so the ranks slow each other down")


def _nodes(options: RunOptions, environ: Mapping[str, str]) -> tuple[int, int, Endpoint | None]:
    endpoint = parse_endpoint(options.rdzv_endpoint) if options.rdzv_endpoint else None
    if options.nnodes == 1:
        if options.node_rank:
            raise UsageError("bad-node-rank", f"--node-rank {options.node_rank} with --nnodes 1")
        return 1, 0, endpoint
    if endpoint is None:
        raise UsageError(
            "no-endpoint",
            f"--nnodes {options.nnodes} needs --rdzv-endpoint HOST:PORT, an address of node 0",
        )
    return options.nnodes, _node_rank(options, environ), endpoint


def _node_rank(options: RunOptions, environ: Mapping[str, str]) -> int:
    rank = options.node_rank
    if rank is None and environ.get("SLURM_NODEID", "").isdecimal():
        rank = int(environ["SLURM_NODEID"])  # srun starts the same command on every node
    if rank is None:
        raise UsageError(
            "no-node-rank", f"--nnodes {options.nnodes} needs --node-rank, from 0 upward"
        )
    if rank >= options.nnodes:
        raise UsageError("bad-node-rank", f"--node-rank {rank} with --nnodes {options.nnodes}")
    return rank


def parse_endpoint(text: str) -> Endpoint:
    """HOST:PORT, with [HOST]:PORT for IPv6.

    Raises:
        UsageError: `bad-endpoint`.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            "bad-endpoint",
            f"--rdzv-endpoint {text!r}: expected HOST:PORT with a port from 1 to 65535",
        )
    return Endpoint(host, int(port))


def _env(device: str, threads: int, nnodes: int, environ: Mapping[str, str]) -> dict[str, str]:
    env = {"OMP_NUM_THREADS": str(threads)}
    if "MKL_NUM_THREADS" in environ:  # it would win over OMP_NUM_THREADS
        env["MKL_NUM_THREADS"] = str(threads)
    if device == "cpu":
        env |= _REHEARSAL_ENV
        if nnodes == 1 and "GLOO_SOCKET_IFNAME" not in environ:
            env["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that does not resolve must not matter
    return env


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else "1 GPU" if count == 1 else f"{count} GPUs"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
