"""What fails in a probe stays there, and what a probe costs is measured now and then."""

from __future__ import annotations

from diag.probes.contain import METER_EVERY, Failures, Meter


def broken() -> None:
    raise ValueError("no such thing")


def test_a_failure_is_counted_with_its_first_message_and_not_raised() -> None:
    failures = Failures()
    for wrap in (failures.contained, failures.seam):
        assert wrap("here", broken)() is None
    assert failures.counts == {"here": 2}
    assert failures.first == {"here": "ValueError: no such thing"}


def metered() -> tuple[list[int], Failures]:
    time = [0]
    failures = Failures()
    failures.meter = Meter(lambda: time[0])
    return time, failures


def test_the_cost_of_a_measured_step_stands_until_the_next_one() -> None:
    time, failures = metered()

    def spend(ns: int) -> None:
        time[0] += ns

    probe = failures.seam("probe", spend)
    costs = []
    for step in range(METER_EVERY + 3):
        probe(10 + step)
        probe(1)
        costs.append(failures.meter.step_ended())
    # Steps 0, 1 and METER_EVERY + 1 are measured; others take over what was measured last.
    assert costs == [11] + [12] * METER_EVERY + [12 + METER_EVERY] * 2


def test_a_probe_within_a_probe_is_counted_once_and_a_failing_one_too() -> None:
    time, failures = metered()

    def inner() -> None:
        time[0] += 5
        raise KeyError

    def outer() -> None:
        time[0] += 2
        failures.seam("inner", inner)()

    failures.seam("outer", outer)()
    assert failures.meter.step_ended() == 7
    assert failures.counts == {"inner": 1}
