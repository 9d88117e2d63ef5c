"""What a user can get wrong when loading, and what is said about names that differ."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diag.engine.big import init_empty_weights, load_checkpoint_and_dispatch
from diag.errors import DiagError
from helpers.bigmodels import TinyLM, save_whole, tiny_lm, tokens


def empty_lm(**sizes: int) -> TinyLM:
    with init_empty_weights():
        return TinyLM(**sizes).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_whole(tiny_lm(), tmp_path / "model.safetensors")


# --------------------------------------------------------------------- empty models


def test_empty_weights_hold_nothing_and_buffers_their_values() -> None:
    model = empty_lm()
    assert all(param.is_meta and type(param) is nn.Parameter for param in model.parameters())
    assert all(param.requires_grad for param in model.parameters())
    assert all(not buffer.is_meta for buffer in model.buffers())
    assert model.head.weight is model.embed.weight
    assert not any(param.is_meta for param in TinyLM().parameters())  # the context has ended


def test_buffers_can_be_empty_too() -> None:
    with init_empty_weights(include_buffers=True):
        model = TinyLM()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_the_context_ends_when_a_constructor_fails() -> None:
    with pytest.raises(ZeroDivisionError), init_empty_weights():
        nn.Linear(1 // 0, 1)
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_parameters_class_attributes_and_ties_stay() -> None:
    class Marked(nn.Parameter):
        pass

    marked = Marked(torch.ones(3), requires_grad=False)
    marked.note = "kept"
    with init_empty_weights():
        first, second = nn.Module(), nn.Module()
        first.weight = marked
        second.weight = marked
        lazy = nn.LazyLinear(3)
    assert first.weight is second.weight is marked
    assert (marked.is_meta, type(marked), marked.note) == (True, Marked, "kept")
    assert not marked.requires_grad
    assert nn.parameter.is_lazy(lazy.weight)


# --------------------------------------------------------------------- maps and memory


def test_auto_places_by_memory(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, max_memory={"cpu": "20KB"})
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(model(tokens())["logits"], tiny_lm()(tokens())["logits"])


def test_a_block_larger_than_any_room_is_refused(saved: Path) -> None:
    with pytest.raises(DiagError, match=r"'memory' needs 9.18 KiB on cpu"):
        load_checkpoint_and_dispatch(empty_lm(), saved, max_memory={"cpu": "4KB"})


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ("everywhere", "'everywhere' is none of 'auto'"),
        ({"": "gpu"}, "'gpu' is no place"),
        ({"": True}, "True is no place"),
        ({"": "cpu", "layer.0": "disk"}, "names 'layer.0', which the model does not have"),
        ({"layers": "cpu", "embed": "cpu"}, "no place for 'place', 'mask', 'memory.weight_ih_l0'"),
        ({"": 99}, r"on GPU 99; this machine has \d+ of"),
    ],
)
def test_maps_that_cannot_be_are_refused(saved: Path, device_map: Any, words: str) -> None:
    with pytest.raises(DiagError, match=words):
        load_checkpoint_and_dispatch(empty_lm(), saved, device_map)


def test_one_name_of_a_shared_module_is_enough(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    plain = Shared()
    path = save_whole(plain, tmp_path / "m.safetensors")
    model = load_checkpoint_and_dispatch(Shared(), path, {"second": "disk"})
    x = torch.randn(2, 4)
    assert torch.equal(model(x), plain(x))


# ------------------------------------------------------------------ the offload folder


def test_a_folder_that_cannot_be_written_is_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiagError, match=r"cannot be written to .*file/below: Not a directory"):
        load_checkpoint_and_dispatch(
            empty_lm(), saved, {"": "disk"}, offload_folder=tmp_path / "file" / "below"
        )


def test_a_full_disk_is_said_before_anything_is_written(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 500))
    with pytest.raises(DiagError, match=r"KiB of weights go to .* which has 500 B free"):
        load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"}, offload_folder=tmp_path / "f")
    assert not list((tmp_path / "f").iterdir())


def test_nothing_is_copied_when_nothing_waits_on_the_disk(saved: Path, tmp_path: Path) -> None:
    load_checkpoint_and_dispatch(empty_lm(), saved, {"": "cpu"}, offload_folder=tmp_path / "f")
    assert not (tmp_path / "f").exists()


# ---------------------------------------------------------------- names and shapes


def altered(path: Path, drop: str = "", **extra: torch.Tensor) -> Path:
    tensors = {k: v for k, v in load_file(path).items() if k != drop} | extra
    save_file(tensors, path)
    return path


def test_a_missing_weight_of_an_empty_model_is_an_error(saved: Path) -> None:
    path = altered(saved, drop="place", other=torch.ones(1))
    with pytest.raises(DiagError, match="no value for 'place'; it has 'other' that") as caught:
        load_checkpoint_and_dispatch(empty_lm(), path, {"": "cpu"})
    assert caught.value.slug == "missing-weights"


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_real_model_keeps_what_the_checkpoint_lacks(
    saved: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = altered(saved, drop="place", other=torch.ones(1))
    plain, model = tiny_lm(), TinyLM().eval()
    plain.place.data.copy_(model.place)
    with caplog.at_level(logging.WARNING):
        load_checkpoint_and_dispatch(model, path, {"": place})
    assert caplog.messages == [
        "The checkpoint lacks 'place': the model's own values stay. "
        "The model has no place for 'other' of the checkpoint."
    ]
    assert torch.equal(model(tokens())["logits"], plain(tokens())["logits"])
    with pytest.raises(DiagError, match="lacks 'place'"):
        load_checkpoint_and_dispatch(TinyLM(), path, {"": place}, strict=True)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, {"": "disk"}])
def test_a_full_match_says_nothing(
    saved: Path, caplog: pytest.LogCaptureFixture, device_map: dict[str, str]
) -> None:
    load_checkpoint_and_dispatch(empty_lm(), saved, device_map, strict=True)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_either_name_of_a_tied_weight_will_do(saved: Path) -> None:
    weight = load_file(saved)["embed.weight"]
    path = altered(saved, drop="embed.weight", **{"head.weight": weight})
    model = load_checkpoint_and_dispatch(empty_lm(), path, {"": "disk"}, strict=True)
    assert torch.equal(model(tokens())["logits"], tiny_lm()(tokens())["logits"])


def test_another_models_shapes_are_named(saved: Path) -> None:
    with pytest.raises(DiagError, match=r"'place' is \(6, 32\) in the model and \(6, 16\) stored"):
        load_checkpoint_and_dispatch(empty_lm(width=32), saved, {"": "cpu"})


def test_buffers_that_no_checkpoint_holds_must_have_values(saved: Path) -> None:
    with init_empty_weights(include_buffers=True):
        model = TinyLM()
    with pytest.raises(DiagError, match="No checkpoint holds 'mask'") as caught:
        load_checkpoint_and_dispatch(model, saved, {"": "cpu"})
    assert "include_buffers=False" in caught.value.hint


def test_a_damaged_checkpoint_leaves_the_model_as_it_was(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    model = empty_lm()
    with pytest.raises(DiagError, match="was cut off"):
        load_checkpoint_and_dispatch(model, saved, {"": "cpu"})
    assert all(param.is_meta for param in model.parameters())
    assert "forward" not in vars(model)


def test_integers_and_unsaved_buffers_keep_their_type(tmp_path: Path) -> None:
    plain = tiny_lm()
    path = save_whole(plain, tmp_path / "m.safetensors")
    model = load_checkpoint_and_dispatch(empty_lm(), path, {"": "cpu"}, dtype="torch.float16")
    kept = {name: t.dtype for name, t in (*model.named_parameters(), *model.named_buffers())}
    assert kept.pop("mask") == torch.bool
    assert kept.pop("batch_norm.num_batches_tracked") == torch.int64
    assert set(kept.values()) == {torch.float16}


def test_the_checkpoints_type_becomes_the_models(tmp_path: Path) -> None:
    half = save_whole(tiny_lm().to(torch.bfloat16), tmp_path / "m.safetensors")
    for device_map in ({"": "cpu"}, {"": "disk"}):
        model = load_checkpoint_and_dispatch(empty_lm(), half, device_map)
        expected = tiny_lm().to(torch.bfloat16).float()(tokens())["logits"]
        assert torch.equal(model(tokens())["logits"], expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "device_map", [{"": 0}, {"": 0, "layers": "cpu"}, {"": 0, "layers": "disk", "memory": "cpu"}]
)
@pytest.mark.parametrize("origin", ["cpu", "cuda"])
def test_on_a_gpu_outputs_are_bit_equal(saved: Path, device_map: Any, origin: str) -> None:
    plain = tiny_lm().cuda()
    model = load_checkpoint_and_dispatch(empty_lm(), saved, device_map)
    given = tokens().cuda() if device_map == {"": 0} else tokens().to(origin)
    with torch.no_grad():
        expected = plain(tokens().cuda())["logits"]
        output = model(given)["logits"]
    assert output.device.type == given.device.type
    assert torch.equal(output.cuda(), expected)


@pytest.mark.gpu
def test_on_a_gpu_memory_stays_below_the_whole_model(tmp_path: Path) -> None:
    plain = tiny_lm(num_layers=12, width=256)
    whole = sum(param.nbytes for param in plain.parameters())
    path = save_whole(plain, tmp_path / "m.safetensors")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    load_checkpoint_and_dispatch(
        empty_lm(num_layers=12, width=256), path, max_memory={0: whole // 4, "cpu": whole // 2}
    )(tokens())
    assert torch.cuda.max_memory_allocated() - before < whole // 2
