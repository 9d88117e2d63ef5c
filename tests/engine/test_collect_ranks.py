"""Collectives, control, seeds and logs among three real ranks, started once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.ranks import run_ranks

pytestmark = pytest.mark.ranks
N = 3


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
)
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("collect")
    return run_ranks("helpers.collect_ranks", N, directory, request.param, timeout=60)


# What every rank sees alike, in full.
SAME: dict[str, Any] = {
    "gather_scalars": [[0.0, 1.0, 2.0], [3], False],
    "gather_nest": {
        "loss": [0.0, 1.0, 2.0],
        "logits": [0.0, 1.0, 2.0],
        "cache": None,
        "point": ["Point", [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0]]],
        "factory": True,
        "none": None,
        "input_untouched": True,
    },
    "gather_dtypes": {
        "bool": [True, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]],
        **{
            kind: [True, [0.0, 1.0, 1.0, 1.0, 2.0, 1.0]]
            for kind in (
                "uint8",
                "int16",
                "uint16",
                "int64",
                "float16",
                "bfloat16",
                "float8_e4m3fn",
            )
        },
        "complex64": [[[0.0, -1.0], [1.0, -1.0], [2.0, -1.0]]],
    },
    "gather_layouts": [
        [[0, 2, 4], [1, 3, 5], [10, 12, 14], [11, 13, 15], [20, 22, 24], [21, 23, 25]],
        [0, 4],
    ],
    "reduce_dtypes": {
        "int_mean": ["float32", [1.0, 1.0]],
        "count": ["int64", [3, 1]],
        "any": ["bool", [True, False]],
        "uint8": ["int64", [600]],
        "int16_max": ["int16", [2]],
        "half": ["float16", [30000.0]],
        "bfloat16": ["bfloat16", [258.0]],
    },
    "many_leaves": [index % 5 + (2 if index == 39 else 0) for index in range(40)],
    "objects": {
        "lists": [1, 2, 2],
        "dicts": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "words": ["ab", "ab", "ab"],
        "points": [[0, 0], [1, 0], [2, 0]],
        "broadcast": [{"from": 2}, 2],
    },
    "disagreements": {
        "gather": [
            "ranks-disagree",
            "gather: the ranks hold different tensors. ranks 0 and 1: ['ids'] float32 [1, 5]; "
            "rank 2: ['ids'] float32 [1, 6].",
        ],
        "reduce": [
            "ranks-disagree",
            "reduce: the ranks hold different tensors. rank 0: float64 [2]; "
            "ranks 1 and 2: float32 [2].",
        ],
        "broadcast": [
            "ranks-disagree",
            "broadcast: the ranks hold different tensors. ranks 0 and 2: nothing there; "
            "rank 1: ['b'] float32 [1].",
        ],
        "pad": [
            "ranks-disagree",
            "pad_across_processes: the ranks hold different tensors. rank 0: ['t'] float32 [1, 5]; "
            "ranks 1 and 2: ['t'] float32 [1, 1, 6].",
        ],
        "metrics": [
            "ranks-disagree",
            "gather_for_metrics: the ranks hold different tensors. "
            "ranks 0 and 1: ['ids'] float32 [1, 5]; rank 2: ['ids'] float32 [1, 6].",
        ],
        "alike": ["accepted", ""],
        "afterwards": [0, 1, 2],
    },
    "metrics_padded_tail": {
        "tail": [6, 7, 8, 9, 10],
        "no_loader": [6, 7, 8, 9, 10, 0],
        "full": [6, 7, 8, 9, 10, 0],
        "unknown_size": [6, 7, 8, 9, 10],
        "rows": [5, 7],
    },
    "metrics_uneven": [[6, 7, 8, 9, 10], [0.0, 0.0, 2.0, 2.0]],
    "metrics_objects": {
        "words": ["w6", "w7", "w8", "w9", "w10"],
        "pairs": [["w6", "w7", "w8", "w9", "w10"], ["w6", "w7", "w8", "w9", "w10"]],
        "mixed": [["w6", "w7", "w8", "w9", "w10"], [6, 7, 8, 9, 10], [0, 1, 2]],
        "ragged": [[0], [], [1], [1], [2]],
        "rows": [6, 7, 8, 9, 10],
    },
    "trigger": [False, True, False],
    "ordered": ["OrderedDict", ["b", "a"]],
}


@pytest.mark.parametrize("name", sorted(SAME))
def test_what_every_rank_sees(ranks: list[dict[str, Any]], name: str) -> None:
    assert [answers[name] for answers in ranks] == [SAME[name]] * N


def test_reduce(ranks: list[dict[str, Any]]) -> None:
    for rank, answers in enumerate(ranks):
        own = [rank + 1.0, 2.0]
        assert answers["reduce_all"] == {
            "sum": [6.0, 6.0],
            "mean": [2.0, 2.0],
            "max": [3.0, 2.0],
            "min": [1.0, 2.0],
            "none": own,
            "scaled": [1.0, 1.0],
            "default_is_sum": [6.0, 6.0],
            "input": own,
        }


def test_broadcast_overwrites_what_it_was_given(ranks: list[dict[str, Any]]) -> None:
    ones = [[1.0] * 3] * 2
    for answers in ranks:
        strided = [[0, 6], [2, 8], [4, 10]]  # twice what rank 0 had
        assert answers["broadcast_in_place"] == [ones, strided, True, True]


def test_padding(ranks: list[dict[str, Any]]) -> None:
    for rank, answers in enumerate(ranks):
        last, flat, first, rows = answers["pad"]
        assert last == [[1] * (rank + 1) + [-100] * (2 - rank)] * 2
        assert flat == [1.0, 1.0]  # it has no dimension 1
        assert first == [[0] * (2 - rank) + [1] * (rank + 1)] * 2
        assert rows == [float(rank)] * (3 - rank) + [0.0] * rank


def test_one_value_per_rank_counts_where_a_sample_is_real(ranks: list[dict[str, Any]]) -> None:
    for rank, answers in enumerate(ranks):
        kept, quiet, partial, told, matrix, unknown = answers["metrics_scalars"]
        whole = [2.0, 4.0, 6.0]
        assert kept == {"2": whole[:1], "4": whole[:2], "6": whole, "-1": whole}
        assert quiet == ""  # no batch is part real, part repeated
        assert partial == [whole[:2]] * 2
        assert matrix == [6, 3]
        assert unknown == whole
        assert len(told.splitlines()) == (1 if rank == 0 else 0)  # once, on rank 0
        if rank == 0:
            assert "what each rank gave at ['loss'] is not one value per sample" in told
            assert "1 of rank 1's 2 samples are repeated" in told


def test_main_process_goes_first(ranks: list[dict[str, Any]]) -> None:
    order = ranks[0]["main_first"]
    assert order[0] == "0"
    assert sorted(order) == ["0", "1", "2"]


def test_nobody_waits_for_a_main_process_that_failed(ranks: list[dict[str, Any]]) -> None:
    assert [answers["main_first_failing"] for answers in ranks] == [
        "disk full",
        "went on",
        "went on",
    ]


def test_functions_for_one_rank(ranks: list[dict[str, Any]]) -> None:
    returned = [answers["only_on"][0] for answers in ranks]
    assert returned == [
        [5, 5, None, None, None],
        [None, None, None, 6, 6],
        [None, None, 7, None, None],
    ]
    assert {answers["only_on"][1] for answers in ranks} == {"rank"}
    assert [answers["only_on"][2] for answers in ranks] == ["once!", "", ""]


def test_seeds(ranks: list[dict[str, Any]]) -> None:
    same, own = zip(*(answers["seeds"] for answers in ranks), strict=True)
    assert len({tuple(one) for one in same}) == 1
    assert [seed for seed, _ in own] == [7, 8, 9]
    assert len({value for _, value in own}) == N
    assert own[0] == same[0]


def test_logger(ranks: list[dict[str, Any]]) -> None:
    assert ranks[2]["logger"] == [
        "INFO logger for all of us",
        "INFO logger [rank 0] in turn",
        "INFO logger [rank 2] in turn",
        "ERROR logger [rank 2] alone",
        "WARNING logger once",
    ]
