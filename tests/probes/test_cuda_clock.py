"""The CUDA clock on a fake stream: idle time shows, queued work hides it, nothing synchronizes."""

from __future__ import annotations

import pytest

from diag.probes.cuda import REBASE_MS, CudaClock

MS = 1_000_000


class Stream:
    """A device that works off what the host queued; times in ms."""

    def __init__(self) -> None:
        self.host = 0.0
        self.free_at = 0.0
        self.recorded = 0
        self.made = 0
        self.is_capturing = False

    def launch(self, ms: float) -> None:
        self.free_at = max(self.free_at, self.host) + ms

    def new_event(self) -> Event:
        self.made += 1
        return Event(self)

    def capturing(self) -> bool:
        return self.is_capturing

    def current_stream(self) -> Stream:
        return self

    def current_device(self) -> int:
        return 3


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.at: float | None = None

    def record(self, stream: Stream) -> None:
        assert stream is self.stream
        self.stream.recorded += 1
        self.at = max(self.stream.free_at, self.stream.host)

    def query(self) -> bool:
        assert self.at is not None
        return self.stream.host >= self.at

    def elapsed_time(self, later: Event) -> float:
        assert self.at is not None
        assert later.at is not None
        if not (self.query() and later.query()):
            raise RuntimeError("not ready")
        return later.at - self.at


def clock_on(stream: Stream) -> CudaClock:
    clock = CudaClock(stream)
    clock.arm()
    return clock


def test_cuda_is_not_touched_before_the_first_backward() -> None:
    stream = Stream()
    clock = CudaClock(stream)
    before = clock.now()
    assert stream.made == 0
    assert clock.device is None
    assert clock.ready(before)
    clock.arm()
    after = clock.now()
    assert clock.device == 3
    assert clock.resolve(before) <= clock.resolve(after)


def test_waiting_for_the_loader_is_idle_time_between_its_marks() -> None:
    stream = Stream()
    clock = clock_on(stream)
    begin = clock.now()
    stream.host += 30  # next(loader) with nothing queued
    end = clock.now()
    assert clock.resolve(end) - clock.resolve(begin) == 30 * MS


def test_a_loader_hidden_behind_queued_work_costs_nothing() -> None:
    stream = Stream()
    clock = clock_on(stream)
    clock.now()
    stream.launch(100)
    begin = clock.now()
    stream.host += 30
    end = clock.now()
    assert not clock.ready(end)
    stream.host += 100
    assert clock.ready(end)
    assert clock.resolve(end) == clock.resolve(begin)


def test_kernels_count_from_when_they_run_not_when_they_are_launched() -> None:
    stream = Stream()
    clock = clock_on(stream)
    before = clock.now()
    stream.launch(12)
    after = clock.now()
    stream.host += 50
    assert clock.resolve(after) - clock.resolve(before) == 12 * MS


def test_an_unfinished_stamp_is_not_resolved() -> None:
    stream = Stream()
    clock = clock_on(stream)
    clock.now()
    stream.launch(5)
    with pytest.raises(RuntimeError):
        clock.resolve(clock.now())


def test_no_event_is_recorded_during_graph_capture() -> None:
    stream = Stream()
    clock = clock_on(stream)
    clock.now()
    last = clock.now()
    stream.is_capturing = True
    assert clock.now() is last
    assert stream.recorded == 2
    # Nor is one queried: that would invalidate the user's graph.
    assert not clock.ready(last)
    stream.is_capturing = False
    assert clock.ready(last)


def test_events_are_pooled_and_the_base_is_kept() -> None:
    stream = Stream()
    clock = clock_on(stream)
    stamps = [clock.now() for _ in range(4)]
    for stamp in stamps:
        clock.resolve(stamp)
    clock.recycle(stamps)
    clock.recycle(stamps)
    reused = [clock.now().event for _ in range(2)]
    assert len({id(event) for event in reused}) == 2
    assert stream.made == 4
    assert clock.resolve(stamps[1]) == clock.resolve(stamps[0])  # resolved stamps keep their time


def test_long_runs_move_the_base_so_that_resolution_stays() -> None:
    stream = Stream()
    clock = clock_on(stream)
    first = clock.now()
    stream.host += REBASE_MS * 2
    middle = clock.now()
    assert clock.resolve(middle) - clock.resolve(first) == REBASE_MS * 2 * MS
    stream.host += 1
    end = clock.now()
    assert clock.resolve(end) - clock.resolve(middle) == MS
    assert clock._base is middle


def test_a_mark_on_a_side_stream_counts_as_no_time() -> None:
    stream = Stream()
    clock = clock_on(stream)
    marks = [(clock.now(), 6)]
    stream.launch(10)
    marks.append((clock.now(), 2))
    early = clock.now()
    early.event.at = 4.0
    marks += [(early, 5), (clock.now(), 6)]
    stream.host += 20
    assert [ns - clock.resolve(marks[0][0]) for ns in clock.resolve_marks(marks)] == [
        0, 10 * MS, 10 * MS, 10 * MS,
    ]  # fmt: skip
