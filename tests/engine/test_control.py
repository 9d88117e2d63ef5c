"""Each rank's share, and what a single process does alone. No rank is started: shares need none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diag.engine import control
from diag.engine.control import split_between_processes
from diag.engine.process import Process
from diag.errors import DiagError


def rank(number: int, of: int) -> Process:
    return Process(number, number, of, of, torch.device("cpu"), "gloo" if of > 1 else None)


def shares(inputs: Any, of: int, padded: bool = False) -> list[Any]:
    return [split_between_processes(rank(r, of), inputs, padded) for r in range(of)]


@given(st.lists(st.integers()), st.integers(1, 7))
def test_shares_are_even_and_joined_they_are_the_whole(values: list[int], of: int) -> None:
    parts = shares(values, of)
    assert [one for part in parts for one in part] == values
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.integers(), min_size=1), st.integers(1, 7))
def test_padded_shares_are_equal_and_begin_with_the_whole(values: list[int], of: int) -> None:
    parts = shares(values, of, padded=True)
    joined = [one for part in parts for one in part]
    assert len({len(part) for part in parts}) == 1
    # Fewer values than ranks, or a remainder: only the last element is repeated.
    assert [one for part in shares(values, of) for one in part] == values
    assert len(joined) - len(values) < of
    assert sorted(joined) == sorted(values + [values[-1]] * (len(joined) - len(values)))


def test_every_kind_of_sequence() -> None:
    assert shares((1, 2, 3), 2, padded=True) == [(1, 2), (3, 3)]
    assert shares(range(3), 2) == [range(2), range(2, 3)]
    assert [[*part] for part in shares(range(3), 2, padded=True)] == [[0, 1], [2, 2]]
    assert [part.tolist() for part in shares(np.arange(3), 2, padded=True)] == [[0, 1], [2, 2]]
    frame = pd.DataFrame({"a": [1, 2, 3]})
    assert [list(part.a) for part in shares(frame, 2, padded=True)] == [[1, 2], [3, 3]]
    tensors = shares(torch.arange(6).view(3, 2), 2, padded=True)
    assert [part.tolist() for part in tensors] == [[[0, 1], [2, 3]], [[4, 5], [4, 5]]]
    assert shares([], 2, padded=True) == [[], []]


def test_dicts_share_alike_and_stay_as_they_are() -> None:
    inputs = {"a": [1, 2, 3], "b": {"c": torch.arange(3)}}
    first, second = shares(inputs, 2)
    assert first["a"] == [1, 2]
    assert second["b"]["c"].tolist() == [2]
    assert inputs["a"] == [1, 2, 3]


def test_a_single_process_takes_all() -> None:
    inputs = iter("abc")
    assert split_between_processes(rank(0, 1), inputs) is inputs


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(DiagError) as error:
        shares({"a": [1, 2], "b": [1]}, 2)
    assert error.value.slug == "uneven-lists"
    assert "'a': 2, 'b': 1" in error.value.what
    for wrong in (iter("ab"), "ab", 3):
        with pytest.raises(DiagError) as error:
            shares(wrong, 2)
        assert error.value.slug == "cannot-split"


def test_a_single_process_plays_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    alone = rank(0, 1)
    assert control.on_process(alone, abs, 3)(-1) == 1
    assert control.on_local_process(alone, abs, 3)(-1) == 1
    assert control.on_last_process(alone, abs)(-1) == 1
    with control.main_process_first(alone), control.local_main_process_first(alone):
        control.wait_for_everyone(alone)
    flag = control.Trigger()
    flag.set()
    assert [flag.check(alone), flag.check(alone)] == [True, False]
    control.print(alone, "a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"
