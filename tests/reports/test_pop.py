"""POP's factors by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diag.reports.account import account
from diag.reports.pop import pop
from helpers.panels import alone, data_parallel, synchronous

STEPS = 12


def test_each_factor_names_its_own_loss() -> None:
    fast, slow = {"forward": 10.0}, {"forward": 30.0}
    # Both ranks work 60 ms, one 20 more at the end; segments end at 10, 40 and so on.
    step = [[slow, fast, {"forward": 20.0}], [fast, slow, {"forward": 40.0}]]
    run = synchronous([step] * STEPS, network=5)

    factors = pop(account(run, alone([{"forward": 56.0}] * STEPS)))

    # A is 60 and 80, their mean 70; without a network 30 + 30 + 40 = 100; with one 115.
    assert factors.computation == pytest.approx(56 / 70)
    assert factors.load_balance == pytest.approx(70 / 80)
    assert factors.serialization == pytest.approx(80 / 100)
    assert factors.transfer == pytest.approx(100 / 115)
    assert factors.efficiency == pytest.approx(56 / 115)


def test_an_estimate_knows_no_computation() -> None:
    factors = pop(account(data_parallel([[{"forward": 10.0}, {"forward": 20.0}]] * STEPS)))

    assert factors.computation is None
    assert factors.load_balance == pytest.approx(15 / 20)
    assert factors.efficiency == pytest.approx(10 / 20)


def test_unknown_waiting_is_part_of_transfer() -> None:
    step = [[{"forward": 30.0}, {"forward": 10.0}], [{"forward": 10.0}, {"forward": 30.0}]]
    run = replace(synchronous([step] * STEPS), waits=())

    factors = pop(account(run, alone([{"forward": 40.0}] * STEPS)))

    assert factors.serialization is None
    assert factors.transfer == pytest.approx(40 / 60)
