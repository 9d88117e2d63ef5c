"""Safetensors files, whole, sharded and damaged; read as the format's own library reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diag.engine.big.checkpointfiles import open_checkpoint
from diag.engine.big.safefile import read_header, write_safefile
from diag.errors import DiagError
from helpers.bigmodels import save_sharded, tiny_lm

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def assorted() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES}
    return tensors | {"scalar": torch.tensor(2.5), "nothing": torch.empty(0, 4)}


def test_every_type_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    save_file(assorted(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    expected = load_file(tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    assert set(stored) == set(expected)
    for name, tensor in expected.items():
        read = stored[name].read()
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.reshape(-1).view(torch.uint8).tolist() == (
            tensor.reshape(-1).view(torch.uint8).tolist()
        )
        assert read.data_ptr() % 64 == 0 or not read.numel()  # where torch allocates


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    save_file(assorted(), tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    contents = [(s, s.dtype) for s in stored.values() if s.dtype is not torch.float64]
    write_safefile(tmp_path / "b.safetensors", [*contents, (stored["torch.float64"], torch.half)])
    written = load_file(tmp_path / "b.safetensors")
    expected = load_file(tmp_path / "a.safetensors")
    expected["torch.float64"] = expected["torch.float64"].half()
    assert set(written) == set(expected)
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name].float(), tensor.float())


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    save_file(assorted(), tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(DiagError, match="cannot be read"):
        write_safefile(tmp_path / "b.safetensors", [(s, s.dtype) for s in stored.values()])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.safetensors"
    save_file({"a": torch.randn(20), "b": torch.randn(7)}, path)
    return path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_file_cut_off_anywhere_is_refused(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[:length])
    with pytest.raises(DiagError) as caught:
        read_header(path)
    expected = "not-safetensors" if length < 8 else "checkpoint-truncated"
    assert caught.value.slug == expected


def test_a_cut_off_file_tells_how_much_is_there(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole[:-10])
    with pytest.raises(DiagError, match=rf"holds {len(whole) - 10} bytes of {len(whole)} \("):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.integers(0, 120))
def test_garbage_is_refused_in_words(
    whole: bytes, tmp_path: Path, noise: bytes, position: int
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(noise)
    with pytest.raises(DiagError):
        read_header(path)
    path.write_bytes(whole[:position] + noise + whole[position + len(noise) :])
    try:
        stored = read_header(path)
    except DiagError:
        return
    for tensor in stored.values():  # the noise may have hit nothing but values
        assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1]},
        "F32",
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DiagError, match="is no safetensors file"):
        read_header(path)


def test_a_type_torch_lacks_is_named(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(DiagError, match="'a' is of type F4"):
        read_header(path)


@pytest.mark.parametrize("change", ["replaced", "shorter", "gone"])
def test_a_file_that_changes_after_is_not_read(whole: bytes, tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    stored = read_header(path)
    before = path.stat()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: -4 if change == "shorter" else None])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(DiagError) as caught:
        stored["b"].read()
    assert caught.value.slug == (
        "checkpoint-unreadable" if change == "gone" else "checkpoint-changed"
    )


# --------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_shards_are_one_checkpoint(tmp_path: Path, name: str) -> None:
    model = tiny_lm()
    stored = open_checkpoint(save_sharded(model, tmp_path) / name)
    expected = model.state_dict()
    assert set(stored) == set(expected) - {"head.weight"}
    assert all(torch.equal(stored[name].read(), expected[name]) for name in stored)


def test_a_folder_with_one_file_is_a_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "any.safetensors")
    assert set(open_checkpoint(tmp_path)) == {"a"}
    save_file({"b": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DiagError, match="and 2 other safetensors checkpoints"):
        open_checkpoint(tmp_path)
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path)) == {"c"}


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="and no other safetensors checkpoints"):
        open_checkpoint(tmp_path)
    with pytest.raises(DiagError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "nowhere")
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(DiagError, match="is no safetensors file"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_sharded(tiny_lm(), tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DiagError, match="names 3 files; missing beside it: model-00002-of"):
        open_checkpoint(tmp_path)


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    index = save_sharded(tiny_lm(), tmp_path) / "model.safetensors.index.json"
    text = index.read_text().replace('"embed.weight"', '"embed.other"')
    index.write_text(text)
    with pytest.raises(DiagError, match=r"says model-.* holds 'embed.other'; it does not"):
        open_checkpoint(index)


@pytest.mark.parametrize("text", ["", "[1]", '{"weight_map": 3}', "\x00"])
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(text)
    with pytest.raises(DiagError, match="is no index of a sharded checkpoint"):
        open_checkpoint(tmp_path)
