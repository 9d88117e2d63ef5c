"""The assembly of one rank's probes: builds them, connects them, takes them down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from diag.probes import torch_seams
from diag.probes.contain import Failures
from diag.probes.cuda import cuda_clock
from diag.probes.facts import autocast_suffix, model_facts, process_start_ns
from diag.probes.flight import FlightSweeper
from diag.probes.gauges import CudaGpu, NoGpu, Pulse, cuda_gpu, sample
from diag.probes.ledger import Ledger
from diag.probes.roots import ForwardRoots
from diag.probes.session import ProbeConfig, identity
from diag.probes.timeline import Clock, HostClock, Timeline
from diag.probes.torch_seams import Seams
from diag.probes.tracker import Tracker
from diag.probes.traffic import Traffic
from diag.probes.watchers import Watchers
from diag.record.heartbeat import HeartbeatWriter
from diag.record.schema import Phase, StepFlag
from diag.record.writer import RankWriter


class Capture:
    """Everything that observes this rank."""

    def __init__(self, config: ProbeConfig, failures: Failures) -> None:
        self.config = config
        self.failures = failures
        self.facts: dict[str, Any] = identity(config) | {"start_ns": process_start_ns()}
        self.writer = RankWriter(config.directory, config.max_bytes)
        self.heartbeat = HeartbeatWriter(config.directory / "heartbeat")
        self.clock: Clock = cuda_clock() if config.device == "cuda" else HostClock()
        self.gpu: NoGpu | CudaGpu = NoGpu()
        self.ledger = Ledger(self.clock, self.writer, deferred=not self.clock.pools)
        if self.ledger.deferred:
            self.writer.before_flush = failures.contained("settle", self.ledger.settle)
        traffic = Traffic(config.rank, torch_seams.group_ranks)
        self.tracker = Tracker(
            Timeline(self.clock), traffic, self.ledger, failures, config.world_size
        )
        per_step = rank_share(config.samples_per_step, config.rank, config.world_size)
        self.watchers = Watchers(self.tracker, self.writer, failures, per_step)
        without = frozenset(config.options.get("without", ()))
        self.seams = Seams(self.tracker, self.watchers, failures, without)
        self.roots = ForwardRoots(self.seams.wrap_forward)
        self.flight = FlightSweeper(
            self.tracker, self.writer.append_collective, torch_seams.flight_recorder_json
        )
        self.pulse = Pulse([self.gauge, self.flight.sweep, self.refresh_facts], failures)
        self._undo_gc: Callable[[], None] = lambda: None
        self._forward_seen = False
        self._graphs = 0
        self._autocast = ""
        self._beats = 0
        self._background_ns = 0
        self.begin_forward = failures.seam("begin_forward", self._begin_forward)
        self.end_forward = failures.seam("end_forward", self.tracker.end)
        self.stated = failures.seam("samples", self.watchers.stated)
        self.span = failures.seam("span", self.watchers.span)
        self.handed = failures.seam("handed", self.watchers.handed)
        self.begin = failures.seam("begin", self.tracker.begin)
        self.end = failures.seam("end", self.tracker.end)
        self.checkpoint = self.watchers.checkpoint

    def start(self) -> None:
        safe = self.failures.contained
        self.tracker.on_first_step = safe("first_step", self._first_step)
        self.tracker.on_step = safe("step", self._step)
        self.tracker.on_beat = self.heartbeat.beat
        self.seams.install()
        if self.config.device == "cuda":
            self.seams.install_cuda()
        self._undo_gc = self.watchers.watch_gc()
        os.register_at_fork(after_in_child=self._disarm)
        self.write_facts()
        self.writer.start()
        self.pulse.start()

    # -- called from the training ---------------------------------------------------------

    def _begin_forward(self, module: torch.nn.Module) -> int | None:
        depth = self.tracker.begin_forward()
        if depth is not None:
            training = module.training or torch.is_grad_enabled()
            self._forward_seen |= training
            self.watchers.forward_called(module, training)
            if training and not self.roots.settled:
                self._autocast = autocast_suffix(self.config.device)
        return depth

    def _first_step(self) -> None:
        """The first cut: the model is built and has run forward and backward once."""
        self.facts |= model_facts(self.config.device, bool(self.tracker.reducers))
        self.facts["first_step_ns"] = time.monotonic_ns()
        if dist.is_available() and dist.is_initialized():
            self.facts["backend"] = dist.get_backend()
        self.roots.first_step()
        self.seams.install_checkpoint_libraries()
        self.seams.install_fsdp_streams()
        self._graphs = torch_seams.compiled_graphs()
        self.flight.note_cut()

    def _step(self) -> None:
        """A step is being cut; the draft that ends is still the tracker's last one."""
        draft = self.tracker.ending
        if not self.roots.settled:
            draft.flags |= StepFlag.WARM_UP
            if self.roots.after_step(self._forward_seen):
                self.write_facts()
        graphs = torch_seams.compiled_graphs()
        if graphs != self._graphs:
            draft.flags |= StepFlag.WARM_UP
            self._graphs = graphs
        if torch_seams.profiler_enabled():
            draft.flags |= StepFlag.PROFILED
        background = self.writer.flush_cost_ns + self.pulse.cost_ns
        draft.probe_ns = self.failures.meter.step_ended() + background - self._background_ns
        self._background_ns = background
        self.flight.note_cut()

    # -- called from the pulse ------------------------------------------------------------

    def gauge(self) -> None:
        device = self.clock.device
        if device is not None and isinstance(self.gpu, NoGpu):
            self.gpu = cuda_gpu(device)
        self.writer.append_gauge(sample(self.gpu))

    def refresh_facts(self) -> None:
        """A killed rank leaves facts at most ten seconds old."""
        self._beats += 1
        if self._beats % 10 == 0:
            self.write_facts()

    # -- facts and the end ----------------------------------------------------------------

    def write_facts(self) -> None:
        tracker, watchers = self.tracker, self.watchers
        self.writer.write_rank_json(
            self.facts
            | {
                "strategy": self._strategy(),
                "precision": self.facts.get("precision", "unknown") + self._autocast,
                "world_size": self.config.world_size,
                "capabilities": self.seams.capabilities | {"forward": self._forward_seen},
                "groups": tracker.traffic.groups,
                "sites": {Phase(p).label: site for p, site in tracker.sites.items() if site},
                "gradient_groups": sorted(tracker.gradient_groups),
                "steps": tracker.steps,
                "samples_source": watchers.samples_source,
                "samples_problem": watchers.samples_problem,
                "probe_failures": self.failures.counts,
                "probe_failure_messages": self.failures.first,
                "steps_given_up": self.ledger.given_up,
                "rolled_up_collectives": self.writer.rolled_up_from,
                "flight": {"entries": self.flight.swept, "overwritten": self.flight.missed},
                "flush_cost_ns": self.writer.flush_cost_ns,
            }
        )

    def _strategy(self) -> str:
        """ "manual" where the script reduces gradients that no wrapper of torch's does."""
        strategy: str = self.facts.get("strategy", "none")
        return "manual" if strategy == "none" and self.tracker.gradient_groups else strategy

    def finish(self, ended: str, error: dict[str, Any] | None) -> None:
        self.tracker.armed = False
        self.seams.remove()
        self._undo_gc()
        self.pulse.stop()
        now = time.monotonic_ns()
        self.watchers.evaluation_ended(now)
        self.failures.contained("settle", self.ledger.settle)()
        self.failures.contained("gauge", self.gauge)()
        self.failures.contained("last_sweep", self.flight.last_sweep)()
        self.facts |= {"end_ns": now, "ended": ended, "error": error}
        self.writer.flush()
        self.write_facts()
        self.writer.close()

    def _disarm(self) -> None:
        """In a forked child (a loader's worker) nothing is observed."""
        self.tracker.armed = False


def rank_share(total: int | None, rank: int, world: int) -> int | None:
    """This rank's part of `total` samples; the parts sum to the total."""
    if total is None:
        return None
    return total // world + (rank < total % world)
