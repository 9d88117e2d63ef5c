"""A single process gets what one rank of one would; what cannot be collected is said."""

from __future__ import annotations

import pytest
import torch

from diag.engine import collect
from diag.engine.process import Process
from diag.errors import DiagError

ALONE = Process(0, 0, 1, 1, torch.device("cpu"), None)


def refusal(error: pytest.ExceptionInfo[DiagError]) -> tuple[str, str]:
    return error.value.slug, error.value.what


def test_gather_has_the_shapes_of_many_ranks() -> None:
    scalar = torch.tensor(2.0, requires_grad=True)
    gathered = collect.gather(ALONE, {"loss": scalar, "rows": torch.ones(2, 3)})
    assert gathered["loss"].tolist() == [2.0]
    assert not gathered["loss"].requires_grad
    assert gathered["rows"].shape == (2, 3)


def test_reduce_has_the_dtypes_of_many_ranks() -> None:
    flags = torch.tensor([True, False])
    assert collect.reduce(ALONE, flags, "sum").dtype == torch.int64
    assert collect.reduce(ALONE, torch.tensor([3]), "mean").tolist() == [3.0]
    assert collect.reduce(ALONE, flags, "max").dtype == torch.bool
    assert collect.reduce(ALONE, torch.tensor([3.0]), "sum", scale=0.5).tolist() == [1.5]


def test_reduce_returns_a_copy() -> None:
    value = torch.ones(2)
    collect.reduce(ALONE, value).add_(1)
    assert value.tolist() == [1.0, 1.0]


def test_the_rest_alone() -> None:
    nest = {"a": torch.ones(2)}
    assert collect.broadcast(ALONE, nest) is nest
    assert collect.pad_across_processes(ALONE, nest) is nest
    assert collect.gather_object(ALONE, [1, 2]) == [1, 2]
    assert collect.gather_object(ALONE, {"a": 1}) == [{"a": 1}]
    assert collect.broadcast_object_list(ALONE, [1]) == [1]
    assert collect.gather_for_metrics(ALONE, (torch.tensor(1), ["a"]), None)[1] == ["a"]
    assert collect.gather_for_metrics(ALONE, torch.tensor(1), None).tolist() == [1]


def test_a_leaf_that_is_no_tensor_is_named() -> None:
    with pytest.raises(DiagError) as error:
        collect.gather(ALONE, {"loss": torch.ones(1), "names": ["a"]})
    assert refusal(error) == (
        "not-a-tensor",
        "gather takes tensors, and was given a str at ['names'][0].",
    )
    assert "gather_object" in error.value.hint
    with pytest.raises(DiagError) as error:
        collect.reduce(ALONE, 3)
    assert refusal(error) == ("not-a-tensor", "reduce takes tensors, and was given an int.")


def test_an_unknown_reduction_and_rank() -> None:
    with pytest.raises(DiagError) as error:
        collect.reduce(ALONE, torch.ones(1), "median")
    assert error.value.slug == "unknown-reduction"
    with pytest.raises(DiagError) as error:
        collect.broadcast(ALONE, torch.ones(1), from_rank=1)
    assert refusal(error) == ("no-such-rank", "broadcast from rank 1: there are ranks 0 to 0.")
