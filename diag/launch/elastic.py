"""The only file of the launcher that knows torch: ranks under torch elastic, and how they ended.

Importing it imports torch, so the launcher does so last, when the plan stands.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diag.errors import DiagError
from diag.launch.environ import patched_environ
from diag.launch.failure import port_in_use
from diag.launch.logs import RankLogs
from diag.launch.net import address_towards
from diag.launch.plan import LaunchPlan
from diag.launch.signals import HANDLED, ignore_signals

# torch exports both without declaring it.
TCPStore: Any = vars(dist)["TCPStore"]
PrefixStore: Any = vars(dist)["PrefixStore"]

# From the signal to the ranks, or the first failure, to SIGKILL for those still there. Elastic
# would wait 30 s, also where LaunchConfig.shutdown_timeout says otherwise.
GRACE_S = 3
RENDEZVOUS_TIMEOUT_S = 900
_MONITOR_INTERVAL_S = 0.1


@dataclass(frozen=True)
class ExitedRank:
    """A rank that elastic saw end badly. exit_code is negative for a signal."""

    rank: int
    exit_code: int
    time_ns: int  # wall clock, to the second


@dataclass(frozen=True)
class ElasticResult:
    """How it ended: all well, some ranks failed, or the launcher was told by signal to stop."""

    failed: tuple[ExitedRank, ...] = ()
    signal: int | None = None


def run_ranks(plan: LaunchPlan, command: Sequence[str], logs: RankLogs, log: Path) -> ElasticResult:
    """Start the plan's ranks with `sys.executable *command` and wait until all have ended.

    Must be called from the main thread: a rank dies with the thread that started it.

    Raises:
        DiagError: the nodes did not meet, or elastic itself failed.
    """
    launch = elastic_launch(_config(plan, logs), sys.executable)
    with ExitStack() as stack:
        stack.enter_context(_elastic_logs_to(log))
        stack.enter_context(_prompt_close())
        stack.enter_context(patched_environ(plan.env))
        stack.enter_context(_signals_end_the_ranks())
        try:
            launch(*command)
        except ChildFailedError as error:
            return ElasticResult(failed=tuple(_exited(error)))
        except SignalException as error:
            return ElasticResult(signal=int(error.sigval))
        except (dist.DistError, RendezvousError) as error:
            raise rendezvous_failed(plan, error) from error
    return ElasticResult()


def _config(plan: LaunchPlan, logs: RankLogs) -> LaunchConfig:
    wanted: dict[str, Any] = {
        "min_nodes": plan.nnodes,
        "max_nodes": plan.nnodes,
        "nproc_per_node": plan.nproc,
        "run_id": plan.rdzv_id,
        "role": "rank",
        "max_restarts": plan.max_restarts,
        "monitor_interval": _MONITOR_INTERVAL_S,
        "start_method": "spawn",
        "logs_specs": logs,
        "shutdown_timeout": GRACE_S,
        "signals_to_handle": "SIGQUIT",  # the others are ours: a nohup must stay one
        **_rendezvous(plan),
    }
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # fewer in older torch
    return LaunchConfig(**{k: v for k, v in wanted.items() if k in known})


def _rendezvous(plan: LaunchPlan) -> dict[str, Any]:
    timeout = {"timeout": RENDEZVOUS_TIMEOUT_S}
    if plan.endpoint is None:  # port 0: the store takes a free one, so nobody can be faster
        return {
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "127.0.0.1:0",
            "rdzv_configs": {**timeout, "is_host": True},
            "local_addr": "127.0.0.1",  # never a host name that may resolve elsewhere
        }
    return {
        "rdzv_backend": "static",  # torchrun's default too: ranks follow --node-rank
        "rdzv_endpoint": str(plan.endpoint),
        "rdzv_configs": {**timeout, "rank": plan.node_rank},
        "local_addr": address_towards(plan.endpoint.host),
    }


def _exited(error: ChildFailedError) -> Iterator[ExitedRank]:
    for rank, failure in sorted(error.failures.items()):
        yield ExitedRank(rank, failure.exitcode, failure.timestamp * 1_000_000_000)


def rendezvous_failed(plan: LaunchPlan, error: Exception) -> DiagError:
    """What to tell the user when the nodes did not meet."""
    where = f"at {plan.endpoint}" if plan.endpoint else "on this machine"
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        return port_in_use(plan.endpoint)
    return DiagError(
        "rendezvous-failed",
        f"the {plan.nnodes} nodes did not meet {where}: {first_line(error)}",
        "start the same command on every node, each with its own --node-rank, and check that "
        "node 0's address and port can be reached from the others",
    )


def first_line(error: Exception) -> str:
    """An exception in one line: torch's own run over pages."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def agree_on_run_name(plan: LaunchPlan, name: str | None, wait_s: int) -> tuple[str, Any]:
    """Tell the other nodes what node 0 called the run; elsewhere, wait to be told.

    Args:
        name: on node 0 the name, None on the others.
        wait_s: how long another node waits for node 0.

    Returns:
        The name and the store; node 0 must keep it until the ranks have ended.

    Raises:
        DiagError: `port-in-use` or `rendezvous-failed`.
    """
    assert plan.endpoint is not None
    try:
        store = TCPStore(
            plan.endpoint.host,
            plan.endpoint.port,
            is_master=plan.node_rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=wait_s),
            multi_tenant=True,  # the rendezvous opens the same port again, in this process
        )
        keys = PrefixStore(f"diag/{plan.rdzv_id}", store)
        if name is not None:
            keys.set("run", name)
        return keys.get("run").decode(), store
    except (dist.DistError, RuntimeError) as error:
        raise rendezvous_failed(plan, error) from error


@contextmanager
def _prompt_close() -> Iterator[None]:
    """Bound the wait for ranks told to end; without it peers of a failed rank linger 30 s."""
    original = SubprocessContext.close

    def close(
        self: SubprocessContext, death_sig: signal.Signals | None = None, timeout: int = GRACE_S
    ) -> None:
        original(self, death_sig, min(timeout, GRACE_S))

    SubprocessContext.close = close  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        SubprocessContext.close = original  # type: ignore[method-assign]


@contextmanager
def _signals_end_the_ranks() -> Iterator[None]:
    """Turn the first signal into elastic's own way to stop, and ignore the next ones.

    Call it inside `interruptible`, which gives the handlers back in the end.
    """

    stopped = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        ignore_signals()
        raise SignalException(f"got signal {number}", signal.Signals(number))

    installed = {n: signal.getsignal(n) for n in HANDLED if signal.getsignal(n) != signal.SIG_IGN}
    for number in installed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in installed.items():
            if not stopped:
                signal.signal(number, handler)


@contextmanager
def _elastic_logs_to(path: Path) -> Iterator[None]:
    """Elastic's own words go to a file: they are evidence, but no answer to a user."""
    logger = logging.getLogger("torch.distributed.elastic")
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        handler.close()
