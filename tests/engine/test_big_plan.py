"""Where each part of a model goes: fake memory sizes, several GPUs, nothing loaded."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diag.engine.amounts import bytes_of, in_words
from diag.engine.big import infer_device_map, init_empty_weights
from diag.engine.big.plan import Part, assign
from diag.engine.big.sizes import place_of, require_present, rooms_of
from diag.errors import DiagError
from helpers.bigmodels import TinyLM


def parts_of_sizes(*sizes: int) -> list[Part]:
    return [Part((f"p{i}",), weights=size, fetched=size) for i, size in enumerate(sizes)]


def rooms(*gpus: int, cpu: int = 0, disk: float = math.inf) -> dict[str, float]:
    named = {f"cuda:{i}": room for i, room in enumerate(gpus)} | {"cpu": cpu, "disk": disk}
    return {place: room for place, room in named.items() if room}


@pytest.mark.parametrize(
    ("sizes", "available", "expected"),
    [
        # All on one GPU, up to its last byte: nothing waits, so no room is kept.
        ([4, 3, 3], rooms(10, cpu=99), "000"),
        # One byte short: 10 of weights, and room for the largest that waits (3) on GPU 0.
        ([4, 3, 3], rooms(9, cpu=99), "0cc"),
        ([4, 3, 3], rooms(10, 10), "011"),  # levelled: 4 and 6
        ([4, 3, 3], rooms(4, 10), "011"),
        ([2, 2, 2, 2, 2, 2], rooms(100, 100, 100), "001122"),
        ([2, 2, 2, 2, 2, 2], rooms(100, 2, 100), "000122"),
        ([1, 1, 8], rooms(2, 8), "001"),  # the large one never has to come to GPU 0
        ([4, 4, 4, 4], rooms(8, cpu=4), "0cdd"),
        ([4, 4, 4, 4], rooms(cpu=8), "cddd"),
        ([4, 4, 4, 4], rooms(4, 8, cpu=4), "11cd"),  # GPU 0 is kept for what waits
        ([], rooms(1), ""),
    ],
)
def test_places(sizes: list[int], available: dict[str, float], expected: str) -> None:
    places = assign(parts_of_sizes(*sizes), available)
    assert "".join(place.removeprefix("cuda:")[0] for place in places) == expected


def test_each_gpu_is_filled_in_turn_when_asked() -> None:
    places = assign(parts_of_sizes(2, 2, 2, 2), rooms(6, 6), balanced=False)
    assert places == ["cuda:0", "cuda:0", "cuda:0", "cuda:1"]


def test_buffers_count_where_they_are_used() -> None:
    with_buffers = [Part((f"p{i}",), weights=4, buffers=1, fetched=4) for i in range(4)]
    assert assign(with_buffers, rooms(20)) == ["cuda:0"] * 4
    # 5 there, 4 for the one that comes, and the buffers of the three that wait.
    assert assign(with_buffers, rooms(12, cpu=12)) == ["cuda:0", "cpu", "cpu", "cpu"]
    with pytest.raises(DiagError, match="needs 8 B on cuda:0"):
        assign(with_buffers, rooms(7, cpu=99))


@pytest.mark.parametrize(
    ("available", "slug", "words"),
    [
        (rooms(8, cpu=99), "block-too-large", "'p3' needs 10 B on cuda:0 while it computes; there"),
        (rooms(cpu=8), "block-too-large", "'p3' needs 10 B on cpu"),
        (rooms(9, cpu=9, disk=1), "model-too-large", "are 27 B; max_memory has room for 9 B on"),
        ({"disk": math.inf}, "nowhere-to-compute", "disk alone"),
    ],
)
def test_what_does_not_fit_is_said(available: dict[str, float], slug: str, words: str) -> None:
    with pytest.raises(DiagError, match=words) as caught:
        assign(parts_of_sizes(4, 9, 4, 10), available)
    assert caught.value.slug == slug


sizes_and_rooms = st.tuples(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.lists(st.integers(1, 60), max_size=3),
    st.integers(1, 60),
)


@given(sizes_and_rooms)
def test_no_place_is_overfull_and_what_waits_can_come(drawn: Any) -> None:
    sizes, gpus, cpu = drawn
    available = rooms(*gpus, cpu=cpu)
    start = next(iter(available))
    if max(sizes) > available[start]:
        with suppress(DiagError):  # unless another GPU takes it
            places = assign(parts_of_sizes(*sizes), available)
            assert places[sizes.index(max(sizes))].startswith("cuda:")
        return
    places = assign(parts_of_sizes(*sizes), available)
    used = {p: sum(s for s, at in zip(sizes, places, strict=True) if at == p) for p in available}
    computing = [p for p in available if p.startswith("cuda")] or ["cpu"]
    waiting = [s for s, at in zip(sizes, places, strict=True) if at not in computing]
    used[start] += max(waiting, default=0)
    assert all(used[place] <= available[place] for place in available)
    order = [list(available).index(place) for place in places]
    assert order == sorted(order)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_gpus_are_levelled_as_far_as_an_order_allows(sizes: list[int], num_gpus: int) -> None:
    places = assign(parts_of_sizes(*sizes), rooms(*[1000] * num_gpus))
    fullest = max(sum(s for s, at in zip(sizes, places, strict=True) if at == p) for p in places)
    cuts = itertools.combinations_with_replacement(range(len(sizes) + 1), num_gpus - 1)
    best = min(
        max(sum(sizes[a:b]) for a, b in itertools.pairwise([0, *cut, len(sizes)])) for cut in cuts
    )
    assert fullest == best


# ------------------------------------------------------------- a model's device map

LAYER_BYTES = 4 * (2 * 16 + 64 * 16 + 64 + 16 * 64 + 16)


def empty_lm() -> TinyLM:
    with init_empty_weights():
        return TinyLM()


def test_a_map_names_the_largest_modules_that_stay_together() -> None:
    room = 3 * LAYER_BYTES
    assert infer_device_map(empty_lm(), {0: "1GB"}) == {"": 0}
    assert infer_device_map(empty_lm(), {0: room, 1: "1GB"}, balanced=False) == {
        "place": 0, "embed": 0, "head": 0,  # head goes with the weight it shares
        "layers.0": 0, "layers.1": 0, "layers.2": 1, "layers.3": 1,
        "memory": 1, "batch_norm": 1, "mask": 0,
    }  # fmt: skip


def test_blocks_stay_whole_unless_smaller_ones_are_named() -> None:
    room = {0: 3 * LAYER_BYTES, 1: "1GB"}
    by_default = infer_device_map(empty_lm(), room, balanced=False)
    named = infer_device_map(empty_lm(), room, "Layer", balanced=False)
    split = infer_device_map(empty_lm(), room, ["Linear", "LSTM"], balanced=False)
    assert by_default == named
    assert {name for name in split if name.startswith("layers.2.")} == {
        "layers.2.norm", "layers.2.inner", "layers.2.outer", "layers.2.scale"
    }  # fmt: skip


def test_a_models_own_blocks_are_known() -> None:
    class Declared(nn.Module):
        _no_split_modules = ("Sequential",)

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.b = nn.Linear(4, 4)

    room = {0: 100, "cpu": 100}  # bytes; each Linear has 80
    with pytest.raises(DiagError, match="'a' needs 160 B"):
        infer_device_map(Declared(), room)
    assert infer_device_map(Declared(), room, []) == {
        "a.0": "cpu", "a.1": "disk", "b": "disk"
    }  # fmt: skip


def test_a_smaller_type_needs_less_room() -> None:
    model = empty_lm()
    whole = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert infer_device_map(model, {0: whole}) == {"": 0}
    assert infer_device_map(model, {0: whole - 1}) != {"": 0}
    assert infer_device_map(model, {0: whole // 2 + 100}, dtype="bfloat16") == {"": 0}


def test_memory_that_is_free_now_is_enough_for_a_small_model() -> None:
    assert set(infer_device_map(empty_lm()).values()) == {0 if torch.cuda.is_available() else "cpu"}


def test_a_model_without_tensors_needs_no_place() -> None:
    assert infer_device_map(nn.ReLU(), {0: 1}) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"no_split_module_classes": "Leyer"}, "is a Leyer"),
        ({"max_memory": {"gpu": 1}}, "'gpu' is no place"),
        ({"max_memory": {-1: 1}}, "-1 is no place"),
        ({"max_memory": {0: "lots"}}, "'lots' is no amount"),
        ({"max_memory": {0: -5}}, "-5 is no amount"),
        ({"max_memory": {"disk": "1GB"}}, "disk alone"),
        ({"dtype": "float99"}, "loaded as 'float99'"),
        ({"dtype": torch.int8}, "loaded as torch.int8"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DiagError, match=words):
        infer_device_map(empty_lm(), **arguments)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("2KB", 2000),
        ("2KiB", 2048),
        ("1.5 gib", 3 << 29),
        ("0", 0),
        ("7B", 7),
    ],
)
def test_amounts(text: object, num_bytes: int) -> None:
    assert bytes_of(text) == num_bytes


def test_places_have_one_name() -> None:
    same = [0, "cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0)]
    assert {place_of(device) for device in same} == {"cuda:0"}
    assert [place_of(d) for d in ("cpu", "disk", "meta")] == ["cpu", "disk", "meta"]


def test_places_are_filled_gpus_first() -> None:
    given_rooms = rooms_of({"disk": "9GB", "cpu": 5, 10: 4, 2: 3, 0: 0})
    assert list(given_rooms) == ["cuda:2", "cuda:10", "cpu", "disk"]
    assert rooms_of({"cpu": 5}) == {"cpu": 5, "disk": math.inf}


def test_a_gpu_that_is_not_there_is_named() -> None:
    beyond = torch.cuda.device_count()
    with pytest.raises(DiagError, match=f"'head' on GPU {beyond}; this machine has {beyond} of"):
        require_present({"embed": "cpu", "head": f"cuda:{beyond}"})


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1023.6 * 1024, "1 MiB"),
        (3 << 29, "1.5 GiB"),
    ],
)
def test_amounts_in_words(num_bytes: float, words: str) -> None:
    assert in_words(num_bytes) == words


def test_a_list_of_one_module_is_no_list_of_blocks() -> None:
    model = nn.Module()
    model.models = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))])
    assert infer_device_map(model, {0: 100, 1: 100}) == {"models.0.0": 0, "models.0.1": 1}
