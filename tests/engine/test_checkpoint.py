"""Checkpoints in one process: what is put back, what is refused, what is left alone."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from diag.engine.checkpoint import (
    MANIFEST,
    Naming,
    Parts,
    check_stateful,
    load_state,
    save_state,
    unwrap_model,
)
from diag.engine.checkpoint.randomness import capture, for_new_rank
from diag.engine.process import Process
from diag.errors import DiagError
from helpers.checkpoint_training import Training

ALONE = Process(0, 0, 1, 1, torch.device("cpu"), None)


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    x = torch.randn(6, 3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(x).square().mean()
        loss.backward()
        return loss

    return float(optimizer.step(closure).item())  # type: ignore[arg-type,attr-defined]


def refused(action: Callable[[], Any]) -> DiagError:
    with pytest.raises(DiagError) as caught:
        action()
    return caught.value


@pytest.fixture
def seeded() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


pytestmark = pytest.mark.usefixtures("seeded")

# -- what is put back -------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, nesterov=False),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
        lambda p: torch.optim.Adafactor(p, lr=0.1),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    ],
    ids=["sgd", "momentum", "amsgrad", "tensor-lr", "fused", "rmsprop", "adafactor", "lbfgs"],
)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_every_optimizer_goes_on_with_the_same_bits(
    tmp_path: Path, build: Any, steps_before: int
) -> None:
    model = net()
    optimizer = build(model.parameters())
    for _ in range(steps_before):
        step(model, optimizer)
    save_state(tmp_path / "c", Parts([model], [optimizer]), ALONE)
    onward = [step(model, optimizer) for _ in range(3)]

    other = net(1)
    resumed = build(other.parameters())
    step(other, resumed)  # what is loaded replaces it
    load_state(tmp_path / "c", Parts([other], [resumed]), ALONE)
    assert [step(other, resumed) for _ in range(3)] == onward
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_saving_takes_no_step(tmp_path: Path) -> None:
    """torch's get_optimizer_state_dict takes one, and Adam then counts it."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    steps: list[object] = []
    handle = optimizer.register_step_pre_hook(lambda *_: steps.append(1))
    save_state(tmp_path / "c", Parts([model], [optimizer]), ALONE)
    load_state(tmp_path / "c", Parts([model], [optimizer]), ALONE)
    handle.remove()
    assert steps == []
    assert not optimizer.state


def test_generators_schedulers_scaler_loaders_and_objects(tmp_path: Path) -> None:
    straight, broken = (Training(ALONE, "none", seed=1) for _ in range(2))
    straight.seed(1)
    losses, end = straight.train(6)[3:], straight.digest()
    broken.seed(1)
    broken.train(3)
    save_state(tmp_path / "c", broken.parts, ALONE, step=3, strategy="none")
    resumed = Training(ALONE, "none", seed=5)
    loaded = load_state(tmp_path / "c", resumed.parts, ALONE)
    assert (loaded.step, loaded.strategy, loaded.kept) == (3, "none", ())
    assert resumed.train(3) == losses
    assert resumed.digest() == end


def test_several_models_and_optimizers(tmp_path: Path) -> None:
    def build(seed: int) -> Parts:
        models = [net(seed), net(seed + 1)]
        return Parts(models, [torch.optim.Adam(m.parameters(), lr=0.1) for m in models])

    first, second = build(0), build(7)
    for model, optimizer in zip(first.models, first.optimizers, strict=True):
        step(model, optimizer)
    save_state(tmp_path / "c", first, ALONE)
    load_state(tmp_path / "c", second, ALONE)
    for mine, theirs in zip(first.models, second.models, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)
        )
    for mine, theirs in zip(first.optimizers, second.optimizers, strict=True):
        a, b = mine.state_dict()["state"], theirs.state_dict()["state"]
        assert all(torch.equal(a[i]["exp_avg"], b[i]["exp_avg"]) for i in a)


class Counting(nn.Module):
    """A module with state that is no tensor."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.count = count

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


def test_extra_state(tmp_path: Path) -> None:
    save_state(tmp_path / "c", Parts([Counting(5)]), ALONE)
    other = Counting(0)
    load_state(tmp_path / "c", Parts([other]), ALONE)
    assert other.count == 5
    error = refused(lambda: load_state(tmp_path / "c", Parts([nn.Linear(2, 2)]), ALONE))
    assert error.slug == "checkpoint-other-model"


def test_wrappers_do_not_change_names(tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = net()
    wrapped = nn.Sequential(checkpoint_wrapper(net()[0]), nn.ReLU(), net()[2])
    compiled = torch.compile(wrapped, backend="eager")  # inductor would start processes
    optimizer = torch.optim.Adam(compiled.parameters(), lr=0.1)  # type: ignore[attr-defined]
    step(wrapped, optimizer)
    save_state(tmp_path / "c", Parts([compiled], [optimizer]), ALONE)  # type: ignore[list-item]
    resumed = torch.optim.Adam(model.parameters())
    load_state(tmp_path / "c", Parts([model], [resumed]), ALONE)
    for mine, theirs in zip(wrapped.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    load_state(tmp_path / "c", Parts([compiled], [optimizer]), ALONE)  # type: ignore[list-item]
    assert unwrap_model(compiled) is compiled  # type: ignore[arg-type,comparison-overlap]
    assert unwrap_model(compiled, keep_torch_compile=False) is wrapped  # type: ignore[arg-type]


def test_models_without_state_and_nothing_at_all(tmp_path: Path) -> None:
    save_state(tmp_path / "c", Parts([nn.ReLU()]), ALONE)
    load_state(tmp_path / "c", Parts([nn.ReLU()]), ALONE)
    save_state(tmp_path / "d", Parts(), ALONE)
    load_state(tmp_path / "d", Parts(), ALONE)


def test_a_model_alone_loads_from_a_whole_training(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    save_state(tmp_path / "c", Parts([model], [optimizer]), ALONE)
    other = net(1)
    load_state(tmp_path / "c", Parts([other]), ALONE)
    assert torch.equal(other[0].weight, model[0].weight)  # type: ignore[arg-type]


def test_a_new_scaler_keeps_its_state_and_is_named(tmp_path: Path) -> None:
    save_state(tmp_path / "c", Parts([net()]), ALONE)
    scaler = torch.amp.GradScaler("cpu")
    assert load_state(tmp_path / "c", Parts([net()], scaler=scaler), ALONE).kept == ("scaler",)


def test_plain_torch_reads_the_data(tmp_path: Path) -> None:
    model, other = net(), net(1)
    save_state(tmp_path / "c", Parts([model]), ALONE)
    (data,) = (tmp_path / "c").glob("diag-data-*")
    state = {"model": {"0": other.state_dict()}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, checkpoint_id=data)  # type: ignore[attr-defined]
    assert torch.equal(other[0].weight, model[0].weight)  # type: ignore[arg-type]


def test_a_single_process_hears_no_warning(tmp_path: Path, recwarn: Any) -> None:
    save_state(tmp_path / "c", Parts([net()]), ALONE)
    save_state(tmp_path / "c", Parts([net()]), ALONE)
    load_state(tmp_path / "c", Parts([net()]), ALONE)
    assert [str(warning.message) for warning in recwarn] == []


# -- other ranks' generators ------------------------------------------------------------


def test_a_new_rank_joins_a_seed_that_all_share_and_else_has_its_own() -> None:
    def at(seed: int) -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return capture(ALONE)

    shared = for_new_rank(2, [at(1), at(1)])
    assert torch.equal(shared["torch"], at(1)["torch"])
    seeds = [for_new_rank(rank, [at(1), at(2)]) for rank in (2, 3, 4)]
    assert len({own["seed"] for own in seeds}) == 3
    assert seeds == [for_new_rank(rank, [at(1), at(2)]) for rank in (2, 3, 4)]


# -- names and limits -------------------------------------------------------------------


def test_automatic_names_count_on_and_the_limit_deletes_the_oldest(tmp_path: Path) -> None:
    naming = Naming(tmp_path, automatic_checkpoint_naming=True, total_limit=2)
    folder = tmp_path / "checkpoints"
    for count in range(12):
        made = save_state(None, Parts([net(count)]), ALONE, naming=naming)
        assert made == folder / f"checkpoint_{count}"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_10", "checkpoint_11"]
    (folder / "checkpoint_12.incomplete").mkdir()
    (folder / "checkpoint_99").mkdir()  # no manifest: not complete
    model = net()
    assert load_state(None, Parts([model]), ALONE, naming=naming).directory.name == "checkpoint_11"
    assert torch.equal(model[0].weight, net(11)[0].weight)  # type: ignore[arg-type]
    named = save_state(tmp_path / "mine", Parts([model]), ALONE, naming=naming)
    assert named == tmp_path / "mine", "a name that is given wins"


def test_an_old_one_that_was_half_deleted_with_a_users_file_in_it_is_left(tmp_path: Path) -> None:
    naming = Naming(tmp_path, automatic_checkpoint_naming=True, total_limit=1)
    save_state(tmp_path / "checkpoints/checkpoint_2", Parts([net()]), ALONE)
    for name in ("checkpoint_0.incomplete", "checkpoint_1.incomplete"):
        (tmp_path / "checkpoints" / name / "diag-data-00000000").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint_0.incomplete/tokenizer.json").touch()
    made = save_state(None, Parts([net()]), ALONE, naming=naming)
    left = {path.name for path in made.parent.iterdir()}
    assert left == {"checkpoint_3", "checkpoint_0.incomplete"}


def test_naming_that_cannot_be() -> None:
    assert refused(lambda: Naming("x", True, 0)).slug == "bad-total-limit"
    assert refused(lambda: Naming(None, True)).slug == "no-project-dir"
    assert refused(lambda: save_state(None, Parts(), ALONE)).slug == "no-checkpoint-directory"
    assert refused(lambda: load_state(None, Parts(), ALONE)).slug == "no-checkpoint-directory"


def test_nothing_saved_yet(tmp_path: Path) -> None:
    naming = Naming(tmp_path, automatic_checkpoint_naming=True)
    assert refused(lambda: load_state(None, Parts(), ALONE, naming=naming)).slug == (
        "no-such-checkpoint"
    )


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "diag-data-mine").mkdir(parents=True)
    (target / "data").mkdir()
    (target / "notes.txt").write_text("keep")
    for seed in range(3):
        save_state(target, Parts([net(seed)]), ALONE)
    assert (target / "notes.txt").read_text() == "keep"
    kept = sorted(path.name for path in target.iterdir())
    assert len(kept) == 5
    assert {"data", "diag-data-mine", "notes.txt", MANIFEST} < set(kept)


def test_a_foreign_directory_with_the_temporary_name_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "c.incomplete").mkdir()
    (tmp_path / "c.incomplete" / "thesis.tex").touch()
    assert refused(lambda: save_state(tmp_path / "c", Parts(), ALONE)).slug == (
        "checkpoint-name-taken"
    )
    assert (tmp_path / "c.incomplete" / "thesis.tex").exists()


def test_relative_and_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert save_state("here", Parts(), ALONE) == tmp_path / "here"
    assert save_state("~/there", Parts(), ALONE) == tmp_path / "home" / "there"
    save_state(".", Parts(), ALONE)
    load_state(".", Parts(), ALONE)


# -- what is refused --------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    return save_state(tmp_path / "saved", Parts([model], [optimizer]), ALONE)


def fresh(width: int = 4) -> Parts:
    model = net(width=width)
    return Parts([model], [torch.optim.AdamW(model.parameters())])


def data_file(saved: Path, pattern: str) -> Path:
    (found,) = saved.glob(f"diag-data-*/{pattern}")
    return found


def test_another_model_names_the_first_keys_and_shapes(saved: Path) -> None:
    error = refused(lambda: load_state(saved, fresh(width=5), ALONE))
    assert error.slug == "checkpoint-other-model"
    assert "0.weight ([4, 3] saved, [5, 3] here)" in error.what
    other = Parts([nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))])
    error = refused(lambda: load_state(saved, other, ALONE))
    assert "not in the checkpoint 2: 1.weight [1, 4], 1.bias [1]" in error.what
    assert "only in the checkpoint 2: 2.weight [1, 4], 2.bias [1]" in error.what


def test_another_model_is_not_touched(saved: Path) -> None:
    parts = fresh(width=5)
    before = [p.clone() for p in parts.models[0].parameters()]
    refused(lambda: load_state(saved, parts, ALONE))
    now = parts.models[0].parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda m: torch.optim.SGD(m.parameters(), lr=1),
            "is AdamW in the checkpoint and SGD here",
        ),
        (
            lambda m: torch.optim.AdamW(
                [{"params": m[0].parameters()}, {"params": m[2].parameters()}]
            ),
            "has 1 parameter groups in the checkpoint, 2 here",
        ),
        (
            lambda m: torch.optim.AdamW(m[0].parameters()),
            "4 parameters in the checkpoint, 2 here; model.0.2.bias is only in the checkpoint",
        ),
    ],
)
def test_another_optimizer(saved: Path, build: Any, words: str) -> None:
    model = net()
    error = refused(lambda: load_state(saved, Parts([model], [build(model)]), ALONE))
    assert error.slug == "checkpoint-other-optimizer"
    assert words in error.what


def test_another_number_of_parts(saved: Path) -> None:
    parts = fresh()
    more = Parts([*parts.models, net()], parts.optimizers)
    error = refused(lambda: load_state(saved, more, ALONE))
    assert error.slug == "checkpoint-other-parts"
    assert "1 model (Sequential); prepared here: 2 models (Sequential, Sequential)" in error.what
    extra = Parts(parts.models, parts.optimizers, custom=[Training(ALONE, "none").loader])
    assert "0 registered objects" in refused(lambda: load_state(saved, extra, ALONE)).what


def test_directories_that_are_none(saved: Path, tmp_path: Path) -> None:
    error = refused(lambda: load_state(tmp_path / "absent", fresh(), ALONE))
    assert error.slug == "no-such-checkpoint"
    assert str(saved) in error.hint
    (tmp_path / "file.pt").touch()
    assert refused(lambda: load_state(tmp_path / "file.pt", fresh(), ALONE)).slug == (
        "not-a-checkpoint"
    )
    assert refused(lambda: save_state(tmp_path / "file.pt", fresh(), ALONE)).slug == (
        "checkpoint-not-a-directory"
    )
    error = refused(lambda: load_state(tmp_path, fresh(), ALONE))
    assert (error.slug, str(saved) in error.hint) == ("not-a-checkpoint", True)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "random_states_0.pkl").touch()
    error = refused(lambda: load_state(tmp_path / "hf", fresh(), ALONE))
    assert (error.slug, "Accelerate" in error.hint) == ("not-a-checkpoint", True)


def test_what_an_interrupted_save_left(saved: Path) -> None:
    half = saved.rename(saved.with_name("half.incomplete"))
    (half / MANIFEST).unlink()
    for name in ("half", "half.incomplete"):
        error = refused(lambda name=name: load_state(saved.with_name(name), fresh(), ALONE))  # type: ignore[misc]
        assert error.slug == "checkpoint-incomplete"


def test_a_newer_format(saved: Path) -> None:
    facts = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps(facts | {"version": 2, "diag": "9.0"}))
    error = refused(lambda: load_state(saved, fresh(), ALONE))
    assert error.slug == "checkpoint-newer"
    assert "format 2, written by diag 9.0" in error.what


def test_a_missing_shard(saved: Path) -> None:
    data_file(saved, "__0_0.distcp").unlink()
    error = refused(lambda: load_state(saved, fresh(), ALONE))
    assert error.slug == "checkpoint-missing-file"
    assert "1 of its 3 files" in error.what
    assert "__0_0.distcp" in error.what


def test_every_file_truncated_at_any_byte(saved: Path) -> None:
    slugs = set()
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        text = file.name == MANIFEST
        ends = range(len(whole) - text) if len(whole) < 900 else range(0, len(whole), 211)
        for end in [*ends, len(whole) - 1 - text]:
            file.write_bytes(whole[:end])
            slugs.add(refused(lambda: load_state(saved, fresh(), ALONE)).slug)
        file.write_bytes(whole)
    assert slugs == {"checkpoint-truncated", "checkpoint-damaged"}
    load_state(saved, fresh(), ALONE)


def test_bytes_changed_at_the_same_size(saved: Path) -> None:
    """Contents are not checksummed: a changed weight loads. Nothing else than an error may come."""
    draw = random.Random(0)
    slugs = []
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for _ in range(25):
            changed = bytearray(whole)
            for _ in range(8):
                changed[draw.randrange(len(whole))] = draw.randrange(256)
            file.write_bytes(changed)
            try:
                load_state(saved, fresh(), ALONE)
            except DiagError as error:
                slugs.append(error.slug)
        file.write_bytes(whole)
    assert len(slugs) > 20
    known = {"checkpoint-damaged", "checkpoint-truncated", "checkpoint-missing-file"}
    known |= {"checkpoint-other-model", "checkpoint-other-optimizer", "checkpoint-other-parts"}
    assert set(slugs) <= known | {"checkpoint-newer", "checkpoint-failed"}


def test_a_damaged_checkpoint_can_be_saved_over(saved: Path) -> None:
    (saved / MANIFEST).write_text("{")
    save_state(saved, fresh(), ALONE)
    load_state(saved, fresh(), ALONE)
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pathlib", "os.mkdir"),
        ("pathlib", "os.mkdirPath"),
        ("torch.distributed.checkpoint.metadata", "os.mkdir"),
        ("torch.distributed.checkpoint.filesystem", "os.mkdir"),
        ("torch", "os.mkdir"),
        ("os", "mkdir"),
        ("builtins", "exec"),
    ],
)
def test_no_name_in_the_metadata_leads_elsewhere(
    saved: Path, tmp_path: Path, module: str, name: str
) -> None:
    def text(word: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode()

    trap = str(tmp_path / "t")
    call = text(module) + text(name) + pickle.STACK_GLOBAL + text(trap) + pickle.TUPLE1
    with data_file(saved, ".metadata").open("r+b") as file:
        size = len(file.read())
        file.seek(0)
        file.write(pickle.PROTO + b"\x04" + call + pickle.REDUCE + pickle.STOP)
        file.truncate(size)
    assert refused(lambda: load_state(saved, fresh(), ALONE)).slug == "checkpoint-damaged"
    assert not Path(trap).exists()


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (self.where,))

    def __init__(self, where: str) -> None:
        self.where = where


def trust(saved: Path, pattern: str) -> None:
    """Read a file as one that trusts it would."""
    if pattern == "rank0.pt":
        torch.load(data_file(saved, pattern), weights_only=False)
    elif pattern == ".metadata":
        pickle.loads(data_file(saved, pattern).read_bytes())
    else:
        room = {"optimizer.0.state.model.0.0.bias.step": torch.zeros(())}
        dcp.load(room, checkpoint_id=data_file(saved, pattern).parent)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
@pytest.mark.parametrize("pattern", [".metadata", "rank0.pt", "__0_0.distcp"])
def test_no_file_can_run_code(saved: Path, tmp_path: Path, pattern: str) -> None:
    trap = tmp_path / "trapped"
    file = data_file(saved, pattern)
    if pattern == "rank0.pt":
        torch.save(Evil(str(trap)), file)
    elif pattern == ".metadata":
        file.write_bytes(pickle.dumps(Evil(str(trap))))
    else:
        _as_objects(saved, Evil(str(trap)))
    facts = json.loads((saved / MANIFEST).read_text())
    facts["files"] = {name: (saved / name).stat().st_size for name in facts["files"]}
    (saved / MANIFEST).write_text(json.dumps(facts))
    assert refused(lambda: load_state(saved, fresh(), ALONE)).slug == "checkpoint-damaged"
    assert not trap.exists()
    trust(saved, pattern)
    assert trap.exists(), "the trap was none"


def _as_objects(saved: Path, value: Any) -> None:
    """Rewrite the shards so that the optimizer's step counts are pickled objects."""
    metadata = pickle.loads(data_file(saved, ".metadata").read_bytes())
    file = data_file(saved, "__0_0.distcp")
    start = file.stat().st_size
    with file.open("ab") as stream:
        torch.save(value, stream)
        length = stream.tell() - start
    for index, place in metadata.storage_data.items():
        if index.fqn.endswith(".step"):
            place.offset, place.length = start, length
            metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
    # An object is looked up without an offset.
    metadata.storage_data = {
        type(index)(index.fqn) if index.fqn.endswith(".step") else index: place
        for index, place in metadata.storage_data.items()
    }
    data_file(saved, ".metadata").write_bytes(pickle.dumps(metadata))


class Remembers:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return {"state": self.state}

    def load_state_dict(self, state: Any) -> None:
        self.state = state["state"]


@pytest.mark.parametrize(
    "state",
    [
        None,
        "text",
        {"a": [1, 2.5, (3, True)], 4: {5}},
        torch.arange(3, dtype=torch.bfloat16),
        np.arange(6.0).reshape(2, 3),
        [np.float32(1.5), np.bool_(True), np.array([1, 2], dtype=np.int16)],
    ],
    ids=["none", "text", "nest", "tensor", "array", "numbers"],
)
def test_plain_states_of_registered_objects(tmp_path: Path, state: Any) -> None:
    save_state(tmp_path / "c", Parts(custom=[Remembers(state)]), ALONE)
    other = Remembers("other")
    load_state(tmp_path / "c", Parts(custom=[other]), ALONE)
    assert repr(other.state) == repr(state)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Path("x"), "pathlib.PosixPath"),
        (lambda: 0, "cannot be pickled"),
        (np.array([object()], dtype=object), "builtins.object"),
    ],
    ids=["class", "lambda", "objects"],
)
def test_a_state_that_could_not_be_loaded_is_refused_when_saved(
    tmp_path: Path, state: Any, words: str
) -> None:
    good = save_state(tmp_path / "c", Parts(custom=[Remembers(1)]), ALONE)
    error = refused(lambda: save_state(good, Parts(custom=[Remembers(state)]), ALONE))
    assert error.slug == "state-not-plain"
    assert "custom.0 (Remembers)" in error.what
    assert re.search(words, error.what)
    other = Remembers(0)
    load_state(good, Parts(custom=[other]), ALONE)
    assert other.state == 1


def test_a_class_the_user_vouches_for(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([type(Path("x"))]):
        save_state(tmp_path / "c", Parts(custom=[Remembers(Path("x"))]), ALONE)
        other = Remembers(0)
        load_state(tmp_path / "c", Parts(custom=[other]), ALONE)
    assert other.state == Path("x")


def test_objects_without_state_are_refused() -> None:
    error = refused(lambda: check_stateful([Remembers(1), object(), 3]))
    assert error.slug == "no-state-dict"
    assert "argument 1 (object), argument 2 (int)" in error.what
    check_stateful([Remembers(1), net()])


def test_a_model_on_meta(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert (
        refused(lambda: save_state(tmp_path / "c", Parts([model]), ALONE)).slug == "model-on-meta"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refused(lambda: save_state(tmp_path / "file" / "c", Parts(), ALONE))
    assert error.slug == "checkpoint-io"


def test_a_copied_checkpoint_loads(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(saved)
    load_state(tmp_path / "copy", fresh(), ALONE)
