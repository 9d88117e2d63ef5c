"""Weights alone: the layout other tools read, tied weights, shards, what an earlier save left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import pytest
import safetensors.torch
import torch
from huggingface_hub import load_torch_model, split_torch_state_dict_into_shards
from torch import nn

from diag.engine.checkpoint import Parts, get_state_dict, load_state, save_model, save_state
from diag.engine.checkpoint.export import split
from diag.engine.process import Process
from diag.errors import DiagError
from diag.probes import current

ALONE = Process(0, 0, 1, 1, torch.device("cpu"), None)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tied(nn.Module):
    """As a language model is: the head is the embedding, and is said to be tied to it."""

    _tied_weights_keys = ("head.weight",)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6, bias=False)  # first, so that the order alone would keep it
        self.embedding = nn.Embedding(6, 4)
        self.embedding.weight = self.head.weight
        self.norm = nn.BatchNorm1d(4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))


def refused(action: Callable[[], Any]) -> DiagError:
    with pytest.raises(DiagError) as caught:
        action()
    return caught.value


def same(model: nn.Module, other: nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_that_safetensors_loads(tmp_path: Path) -> None:
    model, other = Plain(), Plain()
    save_model(model, tmp_path, ALONE)
    assert names(tmp_path) == [WEIGHTS]
    safetensors.torch.load_model(other, tmp_path / WEIGHTS)
    assert same(model, other)
    with safetensors.safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("safe", [True, False])
def test_shards_that_others_load(tmp_path: Path, safe: bool) -> None:
    model = Plain()
    save_model(model, tmp_path, ALONE, max_shard_size=600, safe_serialization=safe)
    stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    shards = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    assert names(tmp_path) == sorted([*shards, f"{stem}.{ending}.index.json"])
    index = json.loads((tmp_path / f"{stem}.{ending}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert sorted(index["weight_map"]) == sorted(model.state_dict())
    assert sorted(set(index["weight_map"].values())) == shards
    other, another = Plain(), Plain()
    accelerate.load_checkpoint_in_model(other, str(tmp_path))
    load_torch_model(another, tmp_path, safe=safe)
    assert same(model, other)
    assert same(model, another)


@pytest.mark.parametrize("limit", [1, 64, 288, 300, 1000, 10**9])
def test_the_cut_is_hugging_faces(limit: int) -> None:
    state = Plain().state_dict()
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=limit)
    ours = split(state, limit)
    assert ours == list(theirs.filename_to_tensors.values())


def test_tied_weights_are_written_once_under_the_name_that_is_not_declared(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_model(model, tmp_path, ALONE)
    written = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert "embedding.weight" in written
    assert "head.weight" not in written
    assert safetensors.torch.load_model(other, tmp_path / WEIGHTS) == (set(), [])
    assert same(model, other)


def test_the_state_is_a_copy_that_keeps_ties() -> None:
    model = Tied()
    state = get_state_dict(model, ALONE)
    assert list(state) == list(model.state_dict())
    assert state["head.weight"] is state["embedding.weight"]
    before = state["head.weight"].clone()
    model.head.weight.data.zero_()
    assert torch.equal(state["head.weight"], before)


def test_a_view_of_another_tensor_is_written_whole(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("first", model.weight.detach()[:2])
    model.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
    save_model(model, tmp_path, ALONE)
    written = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert torch.equal(written["first"], model.weight[:2])
    assert torch.equal(written["turned"], torch.arange(6.0).reshape(2, 3).T)


def test_what_an_earlier_save_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    (tmp_path / "model-00001-of-00009.safetensors.incomplete").touch()
    model = Plain()
    for limit, count in ((300, 5), ("1GB", 1), (600, 3), (200, 6)):
        save_model(model, tmp_path, ALONE, max_shard_size=limit)
        ours = [n for n in names(tmp_path) if n not in ("config.json", "adapter_model.bin")]
        assert len(ours) == count
        other = Plain()
        load_torch_model(other, tmp_path)
        assert same(model, other)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    second = Process(1, 1, 2, 2, torch.device("cpu"), "gloo")
    assert get_state_dict(Plain(), second) == {}
    save_model(Plain(), tmp_path / "x", second)
    assert not (tmp_path / "x").exists()


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    error = refused(lambda: save_model(Plain(), tmp_path, ALONE))
    assert error.slug == "no-safetensors"
    assert "pip install 'diag[safetensors]'" in error.hint
    save_model(Plain(), tmp_path, ALONE, safe_serialization=False)
    assert names(tmp_path) == ["pytorch_model.bin"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(lambda: save_model(Plain(), tmp_path / "file", ALONE)).slug == "not-a-directory"

    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    error = refused(lambda: save_model(Odd(2, 2), tmp_path, ALONE))
    assert (error.slug, "_extra_state" in error.what) == ("state-not-tensors", True)
    with torch.device("meta"):
        model = Plain()
    assert refused(lambda: save_model(model, tmp_path, ALONE)).slug == "model-on-meta"


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "ten GB", -5, "5XB"])
def test_sizes_that_are_none(text: int | str, tmp_path: Path) -> None:
    error = refused(lambda: save_model(Plain(), tmp_path, ALONE, max_shard_size=text))
    assert error.slug == "bad-amount"


def test_the_probes_hear_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Session:
        @contextmanager
        def checkpoint(self, name: str) -> Iterator[None]:
            heard.append(f"{name} began")
            yield
            heard.append(f"{name} ended")

    monkeypatch.setattr(current, "session", Session())
    save_state(tmp_path / "c", Parts([Plain()]), ALONE)
    load_state(tmp_path / "c", Parts([Plain()]), ALONE)
    get_state_dict(Plain(), ALONE)
    save_model(Plain(), tmp_path, ALONE)
    inner = ["get_state_dict began", "get_state_dict ended"]
    expected = [
        f"{name} {what}" for name in ("save_state", "load_state") for what in ("began", "ended")
    ]
    assert heard == [*expected, *inner, "save_model began", *inner, "save_model ended"]
