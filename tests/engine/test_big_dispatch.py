"""A dispatched model computes what it would in one place, and holds no more than it needs."""

from __future__ import annotations

import copy
import gc
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as pruning
from torch import nn

from diag.engine.big import init_empty_weights, load_checkpoint_and_dispatch
from diag.errors import DiagError
from helpers.bigmodels import (
    TinyLM,
    alive_bytes,
    save_sharded,
    save_whole,
    tensor_bytes,
    tiny_lm,
    tokens,
    watched_memory,
)

MAPS: dict[str, dict[str, Any]] = {
    "all on disk": {"": "disk"},
    "all on cpu": {"": "cpu"},
    "mixed": {"": "cpu", "layers": "disk", "layers.1": "cpu", "memory": "disk"},
    "tied apart": {"": "cpu", "embed": "disk"},
    "single tensors": {"": "cpu", "place": "disk", "layers.0.inner.weight": "disk"},
    "buffers' modules": {"": "cpu", "batch_norm": "disk", "mask": "disk"},
}


def empty_lm(**sizes: int) -> TinyLM:
    with init_empty_weights():
        return TinyLM(**sizes).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whole(tiny_lm(), tmp_path_factory.mktemp("saved") / "model.safetensors")


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_outputs_are_bit_equal(
    saved: Path, device_map: dict[str, Any], dtype: torch.dtype | None
) -> None:
    plain = tiny_lm().to(dtype)
    model = load_checkpoint_and_dispatch(empty_lm(), saved, device_map, dtype=dtype)
    for _ in range(2):
        assert torch.equal(model(tokens())["logits"], plain(tokens())["logits"])


def test_a_model_with_values_gives_them_up(saved: Path) -> None:
    other = TinyLM().eval()  # real, and of other values
    model = load_checkpoint_and_dispatch(other, saved, MAPS["mixed"])
    assert torch.equal(model(tokens())["logits"], tiny_lm()(tokens())["logits"])


def test_shards_and_a_copy_in_the_offload_folder(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    save_sharded(tiny_lm(), shards)
    folder = tmp_path / "a" / "copies"
    model = load_checkpoint_and_dispatch(
        empty_lm(), shards, {"": "disk"}, offload_folder=folder, dtype="bfloat16"
    )
    for shard in shards.iterdir():
        shard.unlink()  # the copy is all it needs
    expected = tiny_lm().to(torch.bfloat16)(tokens())["logits"]
    assert torch.equal(model(tokens())["logits"], expected)
    assert [file.name for file in folder.iterdir()] == ["offloaded.safetensors"]


@pytest.mark.parametrize("grad", [False, True])
def test_memory_stays_below_the_whole_model(tmp_path: Path, grad: bool) -> None:
    sizes = {"num_layers": 8, "width": 128}
    model = tiny_lm(**sizes)
    whole = tensor_bytes(list(model.parameters()))
    block = tensor_bytes(list(model.layers[0].parameters()))
    path = save_whole(model, tmp_path / "m.safetensors")
    del model
    gc.collect()
    before = alive_bytes()
    with watched_memory() as seen, torch.set_grad_enabled(grad):
        model = load_checkpoint_and_dispatch(empty_lm(**sizes), path, {"": "disk"})
        model(tokens())
    # A block, or the LSTM or the head, with the positions around it, buffers and activations.
    assert block < max(seen) - before < 1.5 * block < whole / 5
    gc.collect()
    assert alive_bytes() - before < 0.05 * whole


def test_weights_are_given_back_when_a_layer_fails(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"})
    before = alive_bytes()
    for error in (ValueError, KeyboardInterrupt):  # torch runs no hook for the latter

        def fail(*args: object, error: type[BaseException] = error) -> None:
            raise error

        handle = model.layers[2].outer.register_forward_pre_hook(fail)
        with pytest.raises(error):
            model(tokens())
        with pytest.raises(error):
            model.layers[2](torch.zeros(1, 6, 16), {})
        handle.remove()
        if error is ValueError:
            assert all(param.is_meta for param in model.parameters())
        model(tokens())
        assert all(param.is_meta for param in model.parameters())
        assert alive_bytes() == before
    assert torch.equal(model(tokens())["logits"], tiny_lm()(tokens())["logits"])


def test_a_cache_filled_in_place_stays_the_callers(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"})
    cache: dict[str, torch.Tensor] = {}
    model(tokens(), cache=cache)
    assert len(cache) == 4


def test_buffers_change_as_in_one_place(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"}).train()
    plain = tiny_lm().train()
    for _ in range(3):
        assert torch.equal(model(tokens())["logits"], plain(tokens())["logits"])
    assert torch.equal(model.batch_norm.running_var, plain.batch_norm.running_var)  # type: ignore[arg-type]


def test_the_state_dict_has_values(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, MAPS["mixed"])
    expected = tiny_lm().state_dict()
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    inner = model.layers[0].state_dict()
    assert torch.equal(inner["outer.weight"], expected["layers.0.outer.weight"])


def test_parameters_stay_tied_and_frozen(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"})
    model(tokens())
    assert model.head.weight is model.embed.weight
    assert not any(param.requires_grad for param in model.parameters())


def test_a_model_in_one_place_is_plain(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "cpu"})
    assert "forward" not in vars(model)
    assert model.head.weight is model.embed.weight
    model(tokens())["logits"].sum().backward()
    assert all(param.grad is not None for param in model.parameters())
    model.to(torch.float64)


def test_loading_keeps_a_real_models_parameters(saved: Path) -> None:
    model = TinyLM()
    before = list(model.parameters())
    load_checkpoint_and_dispatch(model, saved, {"": "cpu"})
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_a_dispatched_model_cannot_be_moved(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"})
    for move in (model.cuda, model.half, lambda: model.to("cpu")):
        with pytest.raises(DiagError, match="cannot be moved"):
            move()
    with pytest.raises(DiagError, match="dispatched before"):
        load_checkpoint_and_dispatch(model, saved, {"": "cpu"})


def test_a_copy_computes_too(saved: Path) -> None:
    model = copy.deepcopy(load_checkpoint_and_dispatch(empty_lm(), saved, MAPS["mixed"]))
    assert torch.equal(model(tokens())["logits"], tiny_lm()(tokens())["logits"])
    assert model.layers[0].outer.weight.is_meta


def test_the_signature_is_the_models(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk"})
    assert inspect.signature(model.forward) == inspect.signature(empty_lm().forward)


def test_inputs_go_where_layers_compute_and_results_come_back(saved: Path) -> None:
    # The meta device stands for a GPU: it has places and shapes, if no values.
    model = load_checkpoint_and_dispatch(
        empty_lm(), saved, {"": "meta", "layers.1": "cpu", "layers.2": "disk"}
    )
    places = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, out, name=name: places.__setitem__(name, args[0].device.type)
        )
    given = tokens().to("meta")
    assert model(given)["logits"].shape == (3, 6, 40)
    assert set(places.values()) == {"meta"}
    assert model.layers[1].outer.weight.device.type == "cpu"  # waits there


def encoder() -> nn.Module:
    # In a layer, torch's fast path takes the weights of modules it does not call.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.attention(x, x, x)[0]
        return attended


def list_in_list() -> nn.Module:
    return nn.Sequential(
        *(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8)) for _ in "ab")
    )


def shared_module() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(8, 8), layer, nn.ReLU(), layer)


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruning.random_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def normed() -> nn.Module:
    return nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        torch.nn.utils.weight_norm(nn.Linear(8, 8)),
    )


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        x = self.linear(x) + self.bias
        return x if depth == 0 else self(x, depth - 1) * self.bias


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        encoder,
        Attending,
        list_in_list,
        shared_module,
        pruned,
        normed,
        Recursive,
        lambda: nn.Linear(8, 8),
    ],
)
def test_unusual_modules(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = make()
    path = save_whole(plain, tmp_path / "m.safetensors")
    model = load_checkpoint_and_dispatch(make(), path, {"": "disk"})
    x = torch.randn(1, 2, 8)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(x), plain(x))
    assert all(param.is_meta for param in model.parameters())


@pytest.mark.parametrize("classes", [[], None])
def test_what_is_no_block_is_fetched_module_by_module(tmp_path: Path, classes: Any) -> None:
    plain = list_in_list()
    path = save_whole(plain, tmp_path / "m.safetensors")
    device_map = {"": "disk", "1": "cpu"}
    model = load_checkpoint_and_dispatch(
        list_in_list(), path, device_map, no_split_module_classes=classes
    )
    present: list[str] = []

    def note(*_: object) -> None:
        present.extend(name for name, p in model.named_parameters() if not p.is_meta)

    model[0][0][1].register_forward_hook(note)
    x = torch.randn(2, 8)
    assert torch.equal(model(x), plain(x))
    on_cpu = ["1.0.0.weight", "1.0.0.bias", "1.1.weight", "1.1.bias"]
    within_block = [] if classes == [] else ["0.0.0.weight", "0.0.0.bias"]
    assert sorted(present) == sorted(within_block + on_cpu)


def test_a_tied_weight_lives_at_its_fastest_place(saved: Path) -> None:
    model = load_checkpoint_and_dispatch(empty_lm(), saved, {"": "disk", "head": "cpu"})
    assert model.embed.weight is model.head.weight
    assert not model.embed.weight.is_meta
