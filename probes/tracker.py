"""The heart of capture: turns what the seams see into steps, phases and collectives.

A step is cut where the last gradient synchronization before `step()` of the first-stepping
optimizer is released: at the end of the last backward before it, or, where the script reduces
its gradients by hand after the backward, at the release of the last such collective.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diag.probes.contain import Failures
from diag.probes.ledger import Draft, Ledger
from diag.probes.reducers import Reducer, Reducers
from diag.probes.timeline import Stamp, Timeline
from diag.probes.traffic import Blocked, Issued, Traffic
from diag.record.schema import Phase, StepFlag

DATA, FORWARD, BACKWARD = int(Phase.DATA), int(Phase.FORWARD), int(Phase.BACKWARD)
OPTIMIZER, EXPOSED, HOST = int(Phase.OPTIMIZER), int(Phase.EXPOSED_COMM), int(Phase.HOST)
monotonic = time.monotonic_ns
# A leading optimizer that let this many others step since its own last one is out of use.
ABANDONED_AFTER = 200
MAX_ROWS = 20_000


@dataclass(slots=True)
class Waiting:
    """An open blocking wait."""

    depth: int
    stamp: Stamp


class Tracker:
    """One rank's capture. Called from the training thread; nothing here may raise into it."""

    def __init__(
        self, timeline: Timeline, traffic: Traffic, ledger: Ledger, failures: Failures, world: int
    ) -> None:
        self.timeline = timeline
        self.traffic = traffic
        self.ledger = ledger
        self.failures = failures
        self.world = world
        self.armed = True
        self.owner = threading.get_ident()
        self.in_backward = False
        self.draft = Draft()
        self.steps = 0
        self.first_cut_ns: int | None = None
        # Whether this thread works for a backward: on CUDA that is autograd's own thread, and the
        # owner waits. Any other thread (a prefetcher, a checkpointer) is not the training's.
        self.in_graph_task: Callable[[], bool] = lambda: True
        self.on_first_step: Callable[[], object] = lambda: None
        self.on_step: Callable[[], object] = lambda: None
        self.on_beat: Callable[[int, int, int, int, int], object] = lambda *_: None
        self.ending = self.draft  # while on_step runs: the draft of the step being cut
        # Groups over which gradients were reduced, by size.
        self.gradient_groups: set[int] = set()
        self.sites: dict[int, str] = {}  # by phase: "file:line" of the user's code
        self._cut_from: int | None = None  # position of the last cut
        self._backward_end: int | None = None  # position of the last backward's end
        self._after_backward: int | None = None  # position of the last wait's end after it
        self._backward_synced = False
        self.reducers = Reducers()
        self._expected: list[Reducer] = []  # those this backward will synchronize
        self._gradient_wait: tuple[Stamp, Stamp] | None = None
        self.announced = False  # this backward's end is to be told by a parameter's gradient
        self._leader: weakref.ref[Any] | None = None  # the first-stepping optimizer
        self._leader_missed = 0  # cuts other optimizers could have made since the leader stepped
        self._local_end: Waiting | None = None
        self._waits_entered = 0
        self._waits_completed = 0

    # -- whose thread is it -------------------------------------------------------------

    def here(self) -> bool:
        """Whether this thread is the training's: the owner's, or autograd's while the owner waits."""
        return self.armed and (
            threading.get_ident() == self.owner or (self.in_backward and self.in_graph_task())
        )

    # -- plain phases -------------------------------------------------------------------

    def begin(self, phase: int) -> int | None:
        """Open `phase`; the token closes it. None: not ours to mark."""
        if not self.here():
            return None
        depth = len(self.timeline.stack)
        self.timeline.enter(phase)
        if phase not in self.sites:
            self._note_site(phase)
        return depth

    def _note_site(self, phase: int) -> None:
        """Remember the user's line a phase begins at, once the training is under way."""
        if self._cut_from is not None:
            self.sites[phase] = self.traffic.site()

    def end(self, depth: int) -> None:
        self.timeline.leave(depth)

    def begin_forward(self) -> int | None:
        """Open the root module's forward; nested roots and recomputation keep the outer label."""
        if not self.here() or self.timeline.phase not in (HOST, OPTIMIZER):
            return None
        return self.begin(FORWARD)

    # -- collectives --------------------------------------------------------------------

    def issue(self, group: Any, op: str, args: tuple[Any, ...]) -> Issued | None:
        """A collective is about to be handed to the backend."""
        if not self.here():
            return None
        issued = self.traffic.issue(group, op, args, self.timeline.now())
        if self.in_backward:
            self._synced_over(len(self.traffic.groups[issued.group]))
        return issued

    def issued(self, issued: Issued, work: Any) -> None:
        self.traffic.follow(issued, work)

    def begin_wait(self) -> Waiting | None:
        """The training is about to block on a collective, whatever phase it is in."""
        if not self.here() or self.timeline.phase == EXPOSED:
            return None
        depth = len(self.timeline.stack)
        waiting = Waiting(depth, self.timeline.enter(EXPOSED))
        self._waits_entered += 1
        self._beat(EXPOSED, monotonic())
        return waiting

    def _beat(self, phase: int, pending_since_ns: int) -> None:
        self.on_beat(
            self.steps, phase, self._waits_entered, self._waits_completed, pending_since_ns
        )

    def end_wait(self, waiting: Waiting, source: str, issued: Issued | None) -> None:
        # After a backward its end may become the cut.
        stamp = self.timeline.leave(waiting.depth, always=self._backward_end is not None)
        position = self.timeline.position
        if issued is not None:
            self.traffic.rows.append(Blocked(issued, waiting.stamp, stamp, source, position))
        if not self.in_backward and self._backward_end is not None:
            self._after_backward = position
        if len(self.traffic.rows) > MAX_ROWS and self._backward_end is None:
            self._let_go()
        self._waits_completed += 1
        self._beat(self.timeline.phase, 0)

    def _let_go(self) -> None:
        """Nothing steps (an evaluation, an inference job): what piled up belongs to no step."""
        self.ledger.before_steps(self.traffic.take_rows(self.timeline.position))
        if self._cut_from is None:
            self.timeline.cut(self.timeline.position)

    def anonymous(self, group: str, op: str, stamp: Stamp, num_bytes: int, dtype: str) -> Issued:
        """A collective whose issue nobody saw: it arrives when the rank blocks on it."""
        seq = self.traffic.next_seq(group)
        # A backward's line does not change; looking for it costs as much as all the rest.
        known = self.sites.get(BACKWARD) if op == "gradients" else None
        return Issued(group, seq, op, num_bytes, dtype, stamp, known or self.traffic.site())

    def buffers_issued(self, ddp: Any, stamp: Stamp) -> Issued:
        """DDP's broadcast of its buffers, BatchNorm's for one."""
        name = self.reducers.name(ddp) + "/buffers"
        self.traffic.note_group(name, ddp.process_group)
        issued = self.anonymous(name, "broadcast", stamp, 0, "")
        if getattr(ddp, "buffer_hook", None) is None:
            issued.root = self.traffic.groups[name][0]  # DDP's buffers are its first rank's
        return issued

    # -- backward -----------------------------------------------------------------------

    def begin_backward(self) -> int | None:
        if self.in_backward:
            return None
        if self._leader is None and self.armed:
            self.owner = threading.get_ident()  # whoever trains, not whoever imported torch
        if self.here():
            self.timeline.arm()
        depth = self.begin(BACKWARD)
        if depth is None:
            return None
        self._backward_synced = False
        self._after_backward = None
        self._expected = self.reducers.expecting()
        self._gradient_wait = None
        self.announced = False
        self.in_backward = True
        return depth

    @property
    def sync_expected(self) -> bool:
        """Whether the backward under way ends in a synchronization by DDP."""
        return bool(self._expected)

    def synchronizing(self) -> list[Any]:
        """The DDPs the backward under way synchronizes."""
        return [ddp for r in self._expected if (ddp := r.ddp()) is not None]

    def local_backward_ended(self) -> None:
        """This rank's own gradients are computed; DDP now waits for the others'."""
        if self.in_backward and self._local_end is None:
            self._local_end = self.begin_wait()

    def local_backward_ended_at(self, stamp: Stamp) -> None:
        """As above, told afterwards (the fallback without an engine callback)."""
        if self.in_backward and self._local_end is None:
            self.timeline.enter_at(stamp, EXPOSED)
            self._local_end = Waiting(len(self.timeline.stack), stamp)

    def end_inner_backward(self) -> None:
        """A backward inside the backward (a reentrant checkpoint) is over, and DDP's wait with
        it, if the last gradient came there. The longest such wait stands for all."""
        waiting, self._local_end = self._local_end, None
        if waiting is not None:
            end = self.timeline.leave(waiting.depth, always=True)
            self._note_gradient_wait(waiting.stamp, end)

    def _note_gradient_wait(self, start: Stamp, end: Stamp) -> None:
        """On CUDA stamps cannot be compared yet: there the last wait stands."""
        known = self._gradient_wait
        comparable = isinstance(start, int) and known is not None
        if not comparable or known is None or end - start >= known[1] - known[0]:
            self._gradient_wait = (start, end)

    def end_backward(self, depth: int) -> None:
        waiting, self._local_end = self._local_end, None
        # Whatever fails below, the next backward must find this one closed.
        self.in_backward = False
        self._backward_end = self.timeline.position
        stamp = self.timeline.leave(depth, always=True)
        position = self._backward_end = self.timeline.position
        if waiting is not None:
            self._waits_completed += 1
            self._note_gradient_wait(waiting.stamp, stamp)
        expected, self._expected = self._expected, []
        for reducer in expected:
            self._reduced(reducer, position)
        if self.announced and self._gradient_wait is None:
            # The parameter that always told where DDP's wait begins got no gradient: what was
            # waited for is in the backward's time, and this step is no use.
            self.draft.flags |= StepFlag.UNSYNCED
        self._beat(HOST, 0)
        self.draft.micro_batches += 1

    def _reduced(self, reducer: Reducer, position: int) -> None:
        """The backward that ended here synchronized these gradients."""
        if reducer.name not in self.traffic.groups:
            ddp = reducer.ddp()
            if ddp is not None:
                self.traffic.note_group(reducer.name, ddp.process_group)
        self._synced_over(reducer.size)
        if self._gradient_wait is not None:
            start, end = self._gradient_wait
            kind = (reducer.num_bytes, reducer.dtype)
            issued = self.anonymous(reducer.name, "gradients", start, *kind)
            self.traffic.rows.append(Blocked(issued, start, end, "ddp", position))

    def _synced_over(self, size: int) -> None:
        self._backward_synced = True
        self.gradient_groups.add(size)

    # -- the optimizer's step: the cut --------------------------------------------------

    def begin_step(self, optimizer: Any) -> int | None:
        if not self.here():
            return None
        if self._leads(optimizer) and self._backward_end is not None:
            self._cut()
        depth = len(self.timeline.stack)
        self.timeline.enter(OPTIMIZER)
        if OPTIMIZER not in self.sites:
            self._note_site(OPTIMIZER)
        return depth

    def _leads(self, optimizer: Any) -> bool:
        """Whether this optimizer's steps are the run's: the first to step, while it is in use."""
        leader = self._leader() if self._leader is not None else None
        if leader is not optimizer and leader is not None:
            self._leader_missed += self._backward_end is not None
            if self._leader_missed <= ABANDONED_AFTER:
                return False
        if leader is not optimizer:
            self._leader = weakref.ref(optimizer)
        self._leader_missed = 0
        return True

    def _cut(self) -> None:
        position = self._cut_position()
        synced = self._backward_synced or self._after_backward is not None
        self._backward_end = self._after_backward = None
        if not self.in_backward and len(self.timeline.stack) > 1:
            # An optimizer that raised never told its end; here nothing can be open.
            self.timeline.leave(1)
        marks = self.timeline.cut(position)
        rows = self.traffic.take_rows(position)
        draft = self.ending = self.draft
        self.draft = Draft()
        if self.world > 1 and not synced:
            draft.flags |= StepFlag.UNSYNCED
        first = self._cut_from is None
        self._cut_from = position
        if first:
            self.first_cut_ns = monotonic()
            self.on_first_step()
            self.ledger.before_steps(rows)
            return
        index = self.steps
        self.steps += 1
        self.on_step()
        self.ledger.add(index, marks, rows, draft)

    def _cut_position(self) -> int:
        assert self._backward_end is not None
        if self._backward_synced or self._after_backward is None:
            return self._backward_end
        # Gradients reduced by hand: released when the last such collective is.
        if self.gradient_reduction_by_hand:
            self.gradient_groups.add(self.world)
        return self._after_backward

    @property
    def gradient_reduction_by_hand(self) -> bool:
        return self._after_backward is not None and not self._backward_synced

    def flag(self, flag: StepFlag) -> None:
        self.draft.flags |= flag
