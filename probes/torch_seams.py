"""The only file that touches torch's private names.

Each seam is one capability: `install` wraps what it needs and says whether it is there on this
torch; what depends on it has a fallback or reports the loss. Wrapped functions that Dynamo may
trace step aside while it compiles, so graphs and breaks stay as they were.

What each seam sees, and what it costs, was measured on torch 2.13 with gloo:
Work.wait 0.2 µs a call; the engine callback 30 µs a backward.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.graph import GradientEdge
from torch.compiler import is_compiling

from diag.probes.beacons import Beacons
from diag.probes.contain import Failures
from diag.probes.patches import Function, Patches
from diag.probes.roots import wrap_call
from diag.probes.tracker import DATA, Tracker
from diag.probes.watchers import Watchers
from diag.record.schema import Phase

FSDP_PARAM_GROUP = "torch.distributed.fsdp._fully_shard._fsdp_param_group"
# Every method of a process group that moves data; older and newer names side by side.
GROUP_METHODS = (
    "allreduce", "allreduce_coalesced", "broadcast", "reduce", "allgather", "_allgather_base",
    "all_gather_single", "allgather_coalesced", "allgather_into_tensor_coalesced",
    "all_gather_single_coalesced", "gather", "scatter", "reduce_scatter", "_reduce_scatter_base",
    "reduce_scatter_single", "reduce_scatter_tensor_coalesced", "reduce_scatter_single_coalesced",
    "alltoall", "alltoall_base", "all_to_all_single", "send", "recv", "recv_anysource", "barrier",
)  # fmt: skip


class Seams:
    """Installs every seam into torch and remembers which ones took.

    Args:
        without: capabilities to leave out, as if this torch did not have them (for tests).
    """

    def __init__(
        self,
        tracker: Tracker,
        watchers: Watchers,
        failures: Failures,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.tracker = tracker
        self.watchers = watchers
        self.failures = failures
        self.without = without
        self.patches = Patches()
        self.cuda = False
        self.capabilities: dict[str, bool] = {}
        self._gradients_watched: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._last_gradient: list[Any] = []
        # Seams run inside the training: whatever fails in one is contained here.
        safe = failures.seam
        self.begin = safe("begin", tracker.begin)
        self.end = safe("end", tracker.end)
        self.begin_wait = safe("begin_wait", tracker.begin_wait)
        self.end_wait = safe("end_wait", tracker.end_wait)
        self._local_end = safe("local_end", tracker.local_backward_ended)
        self.beacons = Beacons(safe("queue_local_end", self._queue_local_end))

    def install(self) -> None:
        seams: dict[str, Callable[[], None]] = {
            "optimizer_hooks": self._optimizer,
            "backward": self._backward,
            "grad_scaler": self._grad_scaler,
            "data_loader": self._data_loader,
            "checkpoint": self._checkpoint,
            "hidden_from_dynamo": hide_from_dynamo,
        }
        if dist.is_available():
            seams |= {
                "work_wait": self._work_wait,
                "process_group_methods": self._group_methods,
                "functional_wait": self._functional_wait,
                "ddp_instances": self._ddp_instances,
                "ddp_buffers": self._ddp_buffers,
                "monitored_barrier": self._monitored_barrier,
                "future_wait": self._future_wait,
                "ddp_forward_end": self._ddp_forward_end,
            }
        for name, install in seams.items():
            self._try(name, install)
        if not self.capabilities.get("work_wait"):
            self._try("blocking_functions", self._blocking_functions)
        self.capabilities["engine_callback"] = (
            "engine_callback" not in self.without and _queue_callback() is not None
        )
        self._try("graph_task", self._graph_task)

    def install_cuda(self) -> None:
        """What only the CUDA path needs; before the script has touched a device."""
        self.cuda = True
        self._try("cuda_copies", self._cuda_copies)

    def install_fsdp_streams(self) -> None:
        """FSDP2's waits between streams on CUDA, if the script has imported FSDP."""
        if self.cuda and FSDP_PARAM_GROUP in sys.modules:
            self._try("fsdp_stream_waits", self._fsdp_stream_waits)

    def _graph_task(self) -> None:
        """Tell autograd's threads from others; without it the owner's alone are believed."""
        current: Callable[[], int] = torch._C._current_graph_task_id
        self.tracker.in_graph_task = lambda: current() >= 0

    def remove(self) -> None:
        self.beacons.put_out()
        self.patches.remove()

    def _try(self, name: str, install: Callable[[], None]) -> None:
        before = len(self.patches.undo)
        try:
            if name in self.without:
                raise AttributeError(f"{name}: left out on request")
            install()
            self.capabilities[name] = True
        except Exception as error:
            self.capabilities[name] = False
            if name not in self.without:
                self.failures.note(f"install {name}", error)
            while len(self.patches.undo) > before:
                self.patches.undo.pop()()

    def _phase(self, phase: int, traced: bool = False) -> Callable[[Function], Function]:
        """A decorator that labels a function's time."""
        begin, end = self.begin, self.end

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def labelled(*args: Any, **kwargs: Any) -> Any:
                if traced and is_compiling():
                    return original(*args, **kwargs)
                depth = begin(phase)
                if depth is None:
                    return original(*args, **kwargs)
                try:
                    return original(*args, **kwargs)
                finally:
                    end(depth)

            return labelled

        return make

    # -- blocking collectives -----------------------------------------------------------

    def _work_wait(self) -> None:
        from torch._C._distributed_c10d import Work

        begin_wait, end_wait = self.begin_wait, self.end_wait
        claim = self.failures.seam("claim", self.tracker.traffic.claim)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
                waiting = begin_wait()
                if waiting is None:
                    return original(work, *args, **kwargs)
                try:
                    return original(work, *args, **kwargs)
                finally:
                    end_wait(waiting, "python", claim(work))

            return wait

        self.patches.wrap(Work, "wait", make)

    def _group_methods(self) -> None:
        from torch._C._distributed_c10d import ProcessGroup

        issue = self.failures.seam("issue", self.tracker.issue)
        issued_as = self.failures.seam("issued", self.tracker.issued)
        begin_wait, end_wait = self.begin_wait, self.end_wait

        def make(op: str) -> Callable[[Function], Function]:
            def wrap(original: Function) -> Function:
                @functools.wraps(original)
                def method(group: Any, *args: Any, **kwargs: Any) -> Any:
                    issued = issue(group, op, args)
                    # NCCL runs a synchronous collective on the current stream within this
                    # call: there is no Work to wait for, and the stream blocks here.
                    waiting = begin_wait() if self.cuda and _synchronous(args) else None
                    try:
                        work = original(group, *args, **kwargs)
                    finally:
                        if waiting is not None:
                            end_wait(waiting, "python", issued)
                    if issued is not None and waiting is None:
                        issued_as(issued, work)
                    return work

                return method

            return wrap

        for name in GROUP_METHODS:
            if name in vars(ProcessGroup):
                self.patches.wrap(ProcessGroup, name, make(name.lstrip("_")))

    def _functional_wait(self) -> None:
        from torch.distributed import _functional_collectives as functional

        self.patches.wrap(functional, "wait_tensor", self._blocking("functional", "functional"))

    def _blocking(self, group: str, source: str) -> Callable[[Function], Function]:
        """Label a function that blocks on one collective nobody saw being issued."""
        begin_wait, end_wait = self.begin_wait, self.end_wait
        anonymous = self.failures.seam("anonymous", self.tracker.anonymous)

        def make(original: Function) -> Function:
            name = getattr(original, "__name__", group)

            @functools.wraps(original)
            def blocking(*args: Any, **kwargs: Any) -> Any:
                waiting = None if is_compiling() else begin_wait()
                if waiting is None:
                    return original(*args, **kwargs)
                try:
                    return original(*args, **kwargs)
                finally:
                    end_wait(waiting, source, anonymous(group, name, waiting.stamp, 0, ""))

            return blocking

        return make

    def _future_wait(self) -> None:
        """`work.get_future().wait()`, as PowerSGD's hook does."""
        wrap = self._blocking("future", "python")
        self.patches.wrap(torch.futures.Future, "wait", wrap)

    def _monitored_barrier(self) -> None:
        wrap = self._blocking("monitored_barrier", "python")
        for owner in (dist, dist.distributed_c10d):
            self.patches.wrap(owner, "monitored_barrier", wrap)

    def _blocking_functions(self) -> None:
        """Fallback without Work.wait: the public blocking functions."""
        names = ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "barrier",
                 "reduce_scatter_tensor", "reduce", "gather", "scatter", "all_to_all")  # fmt: skip
        for name in names:
            self.patches.wrap(dist, name, self._blocking(f"function:{name}", "python"))

    # -- DDP ----------------------------------------------------------------------------

    def _ddp_instances(self) -> None:
        """Know every DDP as it is built. Its forward is left alone: Dynamo may trace it."""
        from torch.nn.parallel import DistributedDataParallel

        built = self.failures.seam("ddp_built", self.tracker.reducers.built)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def init(ddp: Any, *args: Any, **kwargs: Any) -> None:
                original(ddp, *args, **kwargs)
                built(ddp)

            return init

        self.patches.wrap(DistributedDataParallel, "__init__", make)

    def _ddp_forward_end(self) -> None:
        from torch.nn.parallel import DistributedDataParallel

        ended = self.failures.seam("forward_ended", self.tracker.reducers.forward_ended)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def post_forward(ddp: Any, output: Any) -> Any:
                if is_compiling():
                    return original(ddp, output)
                result = original(ddp, output)
                ended(ddp, torch.is_grad_enabled())
                return result

            return post_forward

        self.patches.wrap(DistributedDataParallel, "_post_forward", make)

    def _ddp_buffers(self) -> None:
        from torch.nn.parallel import DistributedDataParallel

        begin_wait, end_wait = self.begin_wait, self.end_wait
        issued = self.failures.seam("buffers", self.tracker.buffers_issued)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def sync_buffers(ddp: Any) -> Any:
                waiting = None if is_compiling() else begin_wait()
                if waiting is None:
                    return original(ddp)
                try:
                    return original(ddp)
                finally:
                    end_wait(waiting, "buffers", issued(ddp, waiting.stamp))

            return sync_buffers

        self.patches.wrap(DistributedDataParallel, "_sync_buffers", make)

    # -- backward -----------------------------------------------------------------------

    def _backward(self) -> None:
        tracker = self.tracker
        safe = self.failures.seam
        begin = safe("begin_backward", tracker.begin_backward)
        end = safe("end_backward", tracker.end_backward)
        end_inner = safe("end_inner_backward", self._end_inner_backward)
        watch = safe("watch_local_end", self._watch_local_end)
        done = safe("unwatch_local_end", _call)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
                depth = begin()
                if depth is None and not (tracker.in_backward and tracker.here()):
                    return original(tensors, *args, **kwargs)
                if not isinstance(tensors, (torch.Tensor, list, tuple, GradientEdge)):
                    tensors = tuple(tensors)  # an iterator is read once, and torch must read it
                unwatch = watch(tensors) if tracker.sync_expected else None
                try:
                    return original(tensors, *args, **kwargs)
                finally:
                    if unwatch is not None:
                        done(unwatch)
                    if depth is None:
                        end_inner()
                    else:
                        end(depth)

            return backward

        self.patches.wrap(torch.autograd, "backward", make)

    def _watch_local_end(self, tensors: Any) -> Callable[[], None] | None:
        """Arrange to be told when this rank's own gradients are done, before DDP waits.

        By a parameter's hook if that is proven to come, else by a hook on the loss.
        """
        if _compiled_autograd():
            self.beacons.put_out()
            return None  # it would trace our hook
        if not self.capabilities["engine_callback"]:
            return self._watch_last_gradient()
        self.tracker.announced = self.beacons.begin(self.tracker.synchronizing())
        if self.tracker.announced:
            return None
        roots = tensors if isinstance(tensors, (list, tuple)) else (tensors,)
        # Every root: the one that leads to the DDP is not known, and repeats do no harm.
        handles: list[Any] = [
            root.register_hook(self._at_root)  # type: ignore[no-untyped-call]
            for root in roots
            if isinstance(root, torch.Tensor) and root.requires_grad
        ]

        def unwatch() -> None:
            for handle in handles:
                handle.remove()

        return unwatch

    def _at_root(self, grad: torch.Tensor) -> None:
        self.beacons.announce()

    def _queue_local_end(self) -> None:
        queue = _queue_callback()
        if queue is not None and self.tracker.sync_expected:
            queue(self._local_end)

    def _end_inner_backward(self) -> None:
        self.beacons.nested()
        self.tracker.end_inner_backward()

    def _watch_last_gradient(self) -> Callable[[], None]:
        """Fallback: the last parameter whose gradient arrives ends the local backward."""
        for ddp in self.tracker.reducers.alive():
            if ddp not in self._gradients_watched:
                self._gradients_watched.add(ddp)
                self._watch_gradients(ddp)
        self._last_gradient.clear()

        def unwatch() -> None:
            if self._last_gradient:
                self.tracker.local_backward_ended_at(self._last_gradient[0])

        return unwatch

    def _watch_gradients(self, module: torch.nn.Module) -> None:
        now, last = self.tracker.timeline.now, self._last_gradient

        def arrived(_: torch.Tensor) -> None:
            last[:] = [now()]

        for parameter in module.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
                self.patches.undo.append(handle.remove)

    # -- optimizer ----------------------------------------------------------------------

    def _optimizer(self) -> None:
        from torch.optim.optimizer import (
            register_optimizer_step_post_hook,
            register_optimizer_step_pre_hook,
        )

        open_steps: list[tuple[int, int]] = []  # of nested optimizers: (id, depth)
        begin = self.failures.seam("begin_step", self.tracker.begin_step)

        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            depth = begin(optimizer)
            self.watchers.optimizer_stepped()
            if depth is not None:
                open_steps.append((id(optimizer), depth))

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            # What lies above belongs to optimizers that raised.
            while open_steps:
                owner, depth = open_steps.pop()
                if owner == id(optimizer):
                    self.end(depth)
                    return

        for handle in (
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ):
            self.patches.undo.append(handle.remove)

    def _grad_scaler(self) -> None:
        """A step the scaler skips never reaches the optimizer's hooks, yet it is a step."""
        from torch.amp.grad_scaler import GradScaler

        begin = self.failures.seam("begin_step", self.tracker.begin_step)
        skipped = self.failures.seam("skipped", self.watchers.scaler_stepped)

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
                depth = begin(inner)
                before = self.watchers.optimizer_steps
                try:
                    return original(scaler, optimizer, *args, **kwargs)
                finally:
                    skipped(before)
                    if depth is not None:
                        self.end(depth)

            return step

        self.patches.wrap(GradScaler, "step", make)

    # -- data ---------------------------------------------------------------------------

    def _data_loader(self) -> None:
        from torch.utils.data import DataLoader
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        safe, watchers = self.failures.seam, self.watchers
        drew, delivered = safe("drew", watchers.drew), safe("delivered", watchers.delivered)
        opened = safe("opened", watchers.loader_opened)
        opening = safe("opening", watchers.loader_opening)
        label = self._phase(DATA)

        def next_index(original: Function) -> Function:
            @functools.wraps(original)
            def draw(iterator: Any) -> Any:
                index = original(iterator)
                drew(iterator, index)
                return index

            return draw

        def next_batch(original: Function) -> Function:
            timed = label(original)

            @functools.wraps(original)
            def fetch(iterator: Any) -> Any:
                batch = timed(iterator)
                delivered(iterator, batch)
                return batch

            return fetch

        def open_loader(original: Function) -> Function:
            timed = label(original)

            @functools.wraps(original)
            def iterate(loader: Any) -> Any:
                opening(loader)
                iterator = timed(loader)
                opened(loader, iterator)
                return iterator

            return iterate

        self.patches.wrap(_BaseDataLoaderIter, "_next_index", next_index)
        self.patches.wrap(_BaseDataLoaderIter, "__next__", next_batch)
        self.patches.wrap(DataLoader, "__iter__", open_loader)

    # -- checkpoints --------------------------------------------------------------------

    def _checkpoint(self) -> None:
        wrap = self.watchers.checkpointing
        self.patches.wrap(torch, "save", wrap)
        self.patches.wrap(torch, "load", wrap)

    def install_checkpoint_libraries(self) -> None:
        """Distributed checkpointing, if the script has imported it by its first step."""
        module = sys.modules.get("torch.distributed.checkpoint")
        for name in ("save", "load", "async_save") if module is not None else ():
            wrap = functools.partial(self.patches.wrap, module, name, self.watchers.checkpointing)
            self._try(f"checkpoint_{name}", wrap)

    # -- CUDA only ----------------------------------------------------------------------

    def _cuda_copies(self) -> None:
        copy = int(Phase.COPY)
        begin, end = self.begin, self.end

        def make(original: Function) -> Function:
            @functools.wraps(original)
            def moved(tensor: Any, *args: Any, **kwargs: Any) -> Any:
                if is_compiling() or tensor.is_cuda or not to_cuda(original, args, kwargs):
                    return original(tensor, *args, **kwargs)
                depth = begin(copy)
                if depth is None:
                    return original(tensor, *args, **kwargs)
                try:
                    return original(tensor, *args, **kwargs)
                finally:
                    end(depth)

            return moved

        # Lazy parameters let only these very functions through.
        from torch.nn import parameter

        mixin: Any = parameter.UninitializedTensorMixin  # type: ignore[attr-defined]
        allowed: list[Any] = mixin._allowed_methods
        to_cuda = self.failures.seam("to_cuda", moves_to_cuda)
        for name in ("to", "cuda"):
            self.patches.wrap(torch.Tensor, name, make)
            wrapper = getattr(torch.Tensor, name)
            allowed.append(wrapper)
            self.patches.undo.append(functools.partial(allowed.remove, wrapper))

    def _fsdp_stream_waits(self) -> None:
        """Inside FSDP2's own waits, the compute stream's waiting for another one is blocking."""
        group = sys.modules[FSDP_PARAM_GROUP].FSDPParamGroup
        inside = [0]

        def entered(original: Function) -> Function:
            @functools.wraps(original)
            def method(*args: Any, **kwargs: Any) -> Any:
                inside[0] += 1
                try:
                    return original(*args, **kwargs)
                finally:
                    inside[0] -= 1

            return method

        blocking = self._blocking("fsdp:stream", "python")

        def wait_event(original: Function) -> Function:
            blocks = blocking(original)

            @functools.wraps(original)
            def wait(stream: Any, event: Any) -> Any:
                if inside[0] and stream == torch.cuda.current_stream():
                    return blocks(stream, event)
                return original(stream, event)

            return wait

        for name in ("wait_for_unshard", "post_backward", "finalize_backward"):
            self.patches.wrap(group, name, entered)
        self.patches.wrap(torch.cuda.Stream, "wait_event", wait_event)

    # -- forward ------------------------------------------------------------------------

    def wrap_forward(self, kind: type) -> None:
        """Label calls of this module class. The class is patched, never the instance."""
        self.patches.wrap(kind, "__call__", wrap_call)


def moves_to_cuda(original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether Tensor.to or Tensor.cuda, called with these, ends on a CUDA device."""
    if original.__name__ == "cuda":
        return True
    for target in (*args, kwargs.get("device"), kwargs.get("other")):
        if isinstance(target, (int, str, torch.device)) and not isinstance(target, bool):
            return torch.device(target).type == "cuda"
        if isinstance(target, torch.Tensor):
            return target.is_cuda
    return False


def _synchronous(args: tuple[Any, ...]) -> bool:
    """Whether a process group method was called without async_op."""
    return any(getattr(arg, "asyncOp", True) is False for arg in args)


def _compiled_autograd() -> bool:
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "compiled_autograd_enabled", False))


def _call(action: Callable[[], None]) -> None:
    action()


def _queue_callback() -> Callable[[Callable[[], None]], None] | None:
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    return getattr(engine, "queue_callback", None)


def hide_from_dynamo() -> None:
    """Have Dynamo run every frame of the probes as it is, as it does with torch's own files.

    Raises:
        AttributeError: this torch cannot be told.
    """
    import torch._C._dynamo.eval_frame as eval_frame

    skip: Any = getattr(eval_frame, "skip_code", None)  # torch up to 2.6
    if skip is None:
        action: Any = eval_frame._FrameAction
        strategy = eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT)
        skip = functools.partial(_set_strategy, eval_frame.set_code_exec_strategy, strategy)
    ours = [m for n, m in sys.modules.items() if n.startswith(("diag.probes", "diag.record"))]
    for module in ours:
        for code in _module_code(module):
            skip(code)


def _set_strategy(setter: Function, strategy: Any, code: CodeType) -> None:
    setter(code, strategy)


def _module_code(module: ModuleType) -> Iterator[CodeType]:
    """The live code objects of a module's functions and methods, nested ones included."""
    for value in list(vars(module).values()):
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            code = getattr(member, "__code__", None)
            if isinstance(code, CodeType):
                yield from _nested(code)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def compiled_graphs() -> int:
    """How many graphs Dynamo has compiled so far; 0 where it is not loaded."""
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["stats"]["unique_graphs"]) if utils is not None else 0


def profiler_enabled() -> bool:
    probe = getattr(torch.autograd, "_profiler_enabled", None)
    return bool(probe()) if probe is not None else False


def is_fsdp(module: Any) -> bool:
    """Whether this module's parameters are sharded (FSDP2 or FSDP1)."""
    return any(
        base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for base in type(module).__mro__
    )


def group_ranks(group: Any) -> list[int]:
    """Global ranks of a process group."""
    return list(dist.get_process_group_ranks(group))


def flight_recorder_json() -> str | None:
    """The flight recorder's ring, without stacks; None where this build has none."""
    import torch._C._distributed_c10d as c10d

    # NCCL keeps a recorder of its own; the other one is gloo's.
    names = ["_dump_fr_trace_json", "_dump_nccl_trace_json"]
    if dist.is_initialized() and "nccl" in dist.get_backend():
        names.reverse()
    dump = next((d for n in names if (d := getattr(c10d, n, None)) is not None), None)
    if dump is None:
        return None
    text = dump(True, False)
    return text.decode() if isinstance(text, bytes) else str(text)
