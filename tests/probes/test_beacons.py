"""A parameter's gradient announces the end of a backward, once that is proven to come."""

from __future__ import annotations

import torch
from torch import nn

from diag.probes.beacons import TRUSTED_AFTER, Beacons, first_to_arrive
from diag.record.schema import StepFlag
from helpers.fakes import Rank


class Ddp(nn.Module):
    """What a beacon needs of a DDP."""

    def __init__(self, find_unused: bool = False) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self.find_unused_parameters = find_unused

    def backward(self) -> None:
        self.module(torch.ones(1, 2)).sum().backward()


def trusted_each_time(beacons: Beacons, ddp: Ddp, backwards: int) -> list[bool]:
    said = []
    for _ in range(backwards):
        said.append(beacons.begin([ddp]))
        ddp.backward()
    return said


def test_it_is_trusted_once_it_has_shone_in_enough_backwards() -> None:
    announced: list[None] = []
    ddp = Ddp()
    said = trusted_each_time(Beacons(lambda: announced.append(None)), ddp, TRUSTED_AFTER + 2)
    assert said == [False] * TRUSTED_AFTER + [True, True]
    assert len(announced) == TRUSTED_AFTER + 2


def test_a_backward_without_its_gradient_ends_the_trust() -> None:
    beacons, ddp = Beacons(lambda: None), Ddp()
    trusted_each_time(beacons, ddp, TRUSTED_AFTER + 1)
    assert beacons.begin([ddp])
    assert not beacons.begin([ddp])  # nothing came in between


def test_with_two_models_both_must_announce() -> None:
    beacons, one, other = Beacons(lambda: None), Ddp(), Ddp()
    trusted_each_time(beacons, one, TRUSTED_AFTER + 1)
    assert not beacons.begin([one, other])


def test_a_backward_inside_a_backward_ends_it_for_good() -> None:
    beacons, ddp = Beacons(lambda: None), Ddp()
    trusted_each_time(beacons, ddp, TRUSTED_AFTER + 1)
    beacons.nested()
    assert not any(trusted_each_time(beacons, ddp, TRUSTED_AFTER + 2))
    assert not ddp.module[1].bias._post_accumulate_grad_hooks


def test_taken_away_it_leaves_no_hook() -> None:
    beacons, ddp = Beacons(lambda: None), Ddp()
    trusted_each_time(beacons, ddp, 1)
    assert ddp.module[1].bias._post_accumulate_grad_hooks
    beacons.put_out()
    assert not ddp.module[1].bias._post_accumulate_grad_hooks


def test_only_a_parameter_that_is_sure_to_be_reduced_will_do() -> None:
    ddp = Ddp()
    assert first_to_arrive(ddp) is ddp.module[1].bias
    ddp.parameters_to_ignore = {"1.bias"}
    assert first_to_arrive(ddp) is ddp.module[1].weight
    ddp.requires_grad_(False)
    assert first_to_arrive(ddp) is None
    assert first_to_arrive(Ddp(find_unused=True)) is None


def test_a_step_whose_wait_was_not_announced_is_of_no_use() -> None:
    rank = Rank().wrapped()
    for _ in range(3):
        depth = rank.tracker.begin_backward()
        rank.tracker.announced = True
        assert depth is not None
        rank.tracker.end_backward(depth)
        rank.step(1)
    assert rank.rows.steps[-1]["flags"] == StepFlag.UNSYNCED
