"""The Engine in a single process: what it leaves as it is, what it refuses, and how."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import diag
from diag import Engine
from diag.engine.models import is_spread
from diag.errors import DiagError, UsageError
from helpers.engine_ranks import exact_cases, refusal
from helpers.engine_training import Case, Net, Sequences, alone, deviation, loss_of, together


def parts() -> tuple[nn.Module, torch.optim.Optimizer, StepLR, DataLoader[Any]]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, StepLR(optimizer, 1, 0.5), DataLoader(Sequences(12), 4)


@pytest.mark.parametrize("name", exact_cases(1))
def test_training_is_plain_torchs(name: str) -> None:
    case = exact_cases(1)[name]
    assert deviation(together(case, "auto"), alone(case)) <= 1e-14


def test_without_accumulation_it_is_bit_for_bit_torchs() -> None:
    ours, theirs = together(Case(adam=True), "auto"), alone(Case(adam=True))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_any_order_in_the_same_order_back() -> None:
    engine = Engine()
    model, optimizer, scheduler, loader = parts()
    back = engine.prepare(loader, scheduler, "text", model, None, optimizer)
    assert [back[i] for i in (1, 2, 3, 4, 5)] == [scheduler, "text", model, None, optimizer]
    assert len(list(back[0])) == 3
    assert engine.prepare(*back) == back
    assert engine.prepare(model) is model
    assert engine.prepare() == ()


def test_it_says_what_it_is() -> None:
    engine = Engine(gradient_accumulation_steps=3, project_dir="runs")
    assert engine.device == torch.device("cuda" if torch.cuda.is_available() else "cpu", *(
        [0] if torch.cuda.is_available() else []
    ))  # fmt: skip
    assert (engine.num_processes, engine.process_index, engine.local_process_index) == (1, 0, 0)
    assert engine.is_main_process
    assert engine.is_local_main_process
    assert engine.is_last_process
    assert not engine.use_distributed
    assert (engine.strategy, engine.why_strategy) == ("none", "")
    assert (engine.mixed_precision, engine.scaler) == ("no", None)
    assert engine.sync_gradients
    assert not engine.optimizer_step_was_skipped
    assert engine.gradient_accumulation_steps == 3
    assert (engine.project_dir, engine.logging_dir) == ("runs", "runs")
    assert engine.completed_steps == 0


@pytest.mark.parametrize(
    ("option", "alternative"),
    [
        ({"deepspeed_plugin": object()}, "strategy='fsdp'"),
        ({"fsdp_plugin": object()}, "FSDPOptions"),
        ({"megatron_lm_plugin": object()}, "strategy='fsdp'"),
        ({"dynamo_backend": "inductor"}, "torch.compile"),
        ({"rng_types": ["torch"]}, "set_seed"),
        ({"kwargs_handlers": [object()]}, "DDPOptions"),
        ({"dataloader_config": object()}, "split_batches"),
        ({"gradient_accumulation_plugin": object()}, "sync_each_batch"),
        ({"project_config": object()}, "project_dir"),
        ({"parallelism_config": object()}, "strategy"),
        ({"mixed_precision": "fp8"}, "bf16"),
        ({"gradient_acumulation_steps": 2}, "gradient_accumulation_steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_accelerate_has_and_this_has_not_names_the_alternative(
    option: dict[str, Any], alternative: str
) -> None:
    with pytest.raises(UsageError) as error:
        Engine(**option)
    assert next(iter(option)) in error.value.what
    assert alternative in error.value.hint


def test_options_that_ask_for_nothing_pass() -> None:
    Engine(deepspeed_plugin=None, dynamo_backend="no", kwargs_handlers=[], mixed_precision=None)


@pytest.mark.parametrize(
    "option",
    [
        {"strategy": "zero"},
        {"gradient_accumulation_steps": 0},
        {"on_nonfinite_loss": "panic"},
        {"unheard_of": 1},
    ],
)
def test_nonsense_is_a_usage_error(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Engine(**option)


def test_members_of_an_accelerator_name_the_alternative() -> None:
    engine = Engine()
    with pytest.raises(AttributeError, match=r"torch\.profiler"):
        _ = engine.profile
    with pytest.raises(AttributeError, match=r"'no_such_thing'$"):
        _ = engine.no_such_thing
    assert not hasattr(engine, "deepspeed_engine_wrapped")


def test_a_generator_for_an_optimizer_is_refused() -> None:
    model = Net()
    with pytest.raises(DiagError) as error:
        Engine().prepare(model, model.parameters())
    assert error.value.slug == "not-an-optimizer"
    assert "Argument 1" in error.value.what
    assert refusal(lambda: Engine().prepare_optimizer([1]))[0] == "not-an-optimizer"  # type: ignore[type-var]


def test_device_placement_is_one_per_object() -> None:
    model, optimizer, _, _ = parts()
    with pytest.raises(UsageError) as error:
        Engine().prepare(model, optimizer, device_placement=[False])
    assert "2 objects and 1 values" in error.value.what
    assert Engine().prepare(model, optimizer, device_placement=[False, None]) == (model, optimizer)


def test_a_dispatched_model_is_left_where_it_is() -> None:
    model = Net()
    model.hf_device_map = {"": "cpu"}  # type: ignore[assignment]
    assert Engine().prepare(model) is model


def test_which_models_are_spread_over_devices(tmp_path: Path) -> None:
    Engine().save_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path)

    def placed(device_map: dict[str, str]) -> nn.Module:
        empty = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        return diag.load_checkpoint_and_dispatch(empty, tmp_path, device_map)  # type: ignore[arg-type]

    plain, theirs = placed({"": "cpu"}), nn.Linear(2, 2)
    theirs.hf_device_map = {"first": 0, "last": 1}  # type: ignore[assignment]
    assert not is_spread(plain)
    assert is_spread(placed({"0": "cpu", "1": "disk"}))
    assert is_spread(placed({"": "disk"}))
    assert is_spread(theirs)
    trained = Engine(mixed_precision="bf16").prepare(plain)
    assert trained(torch.ones(1, 2)).dtype == torch.float32


def test_forward_can_be_left_in_full_precision() -> None:
    engine = Engine(mixed_precision="bf16")
    model = engine.prepare(nn.Linear(2, 2))
    x = torch.tensor([[1.0, 1.0 + 2**-12]])
    assert model(x).dtype == torch.float32
    exact = nn.functional.linear(x, model.weight, model.bias)
    assert not torch.equal(model(x), exact)
    with engine.autocast():
        assert (x @ x.T).dtype == torch.bfloat16


def test_a_copy_of_a_prepared_model_is_a_model_of_its_own() -> None:
    engine = Engine(mixed_precision="bf16")
    model, _, _, loader = engine.prepare(*parts())
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p in average.parameters():
            p.zero_()
    batch = next(iter(loader))
    assert average(batch["x"]).abs().max() == 0
    assert model(batch["x"]).abs().max() > 0


def test_fp16_trains() -> None:
    engine = Engine(mixed_precision="fp16", scaler={"init_scale": 256.0})
    model, optimizer, scheduler, loader = engine.prepare(*parts())
    for batch in loader:
        engine.backward(loss_of(model, batch, by_items=False))
        engine.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert engine.completed_steps == 3
    assert scheduler.get_last_lr() == [0.1 / 8]
    assert engine.scaler is not None
    assert engine.scaler.get_scale() == 256


def test_unscaling_happens_once() -> None:
    engine = Engine(mixed_precision="fp16", scaler={"init_scale": 256.0})
    model, optimizer, _, loader = engine.prepare(*parts())
    batch = next(iter(loader))
    engine.backward(loss_of(model, batch, by_items=False))
    scaled = engine.clip_grad_norm_([model.head.bias], 1e9).item()
    engine.unscale_gradients(optimizer)
    engine.unscale_gradients()
    assert engine.clip_grad_norm_([model.head.bias], 1e9).item() == scaled


def test_clipping_waits_for_the_window() -> None:
    engine = Engine(gradient_accumulation_steps=2)
    model, _, _, loader = engine.prepare(*parts())
    norms = []
    for batch, _ in zip(loader, range(2), strict=False):
        with engine.accumulate(model):
            engine.backward(loss_of(model, batch, by_items=False))
            engine.clip_grad_norm_(model.parameters(), 1e-3)
            engine.clip_grad_value_(model.parameters(), 1e-5)
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))  # type: ignore[misc]
    assert norms[0] > 1e-2
    assert norms[1] < 1e-3


def test_a_second_sum_in_a_micro_batch_is_refused() -> None:
    engine = Engine(gradient_accumulation_steps=2)
    model, _, _, loader = engine.prepare(*parts())
    batch = next(iter(loader))
    with engine.accumulate(model):
        engine.backward(loss_of(model, batch, by_items=True), num_items=3)
        slug, _ = refusal(
            lambda: engine.backward(loss_of(model, batch, by_items=True), num_items=3)
        )
    assert slug == "items-counted-twice"


def test_what_only_the_optimizer_holds_is_weighed_as_the_models_parameters_are() -> None:
    model, scale = nn.Linear(2, 1), nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    engine = Engine(gradient_accumulation_steps=2)
    model, optimizer = engine.prepare(model, optimizer)
    batches = [(torch.randn(3, 2), 3), (torch.randn(5, 2), 5)]
    for x, count in batches:
        with engine.accumulate(model):
            engine.backward((model(x) * scale).sum(), num_items=count)
    x = torch.cat([x for x, _ in batches])
    expected = torch.autograd.grad((model(x) * scale).mean(), [model.weight, scale])
    torch.testing.assert_close([model.weight.grad, scale.grad], list(expected))


@pytest.mark.parametrize("first", ["no", "bf16"])
def test_a_model_prepared_again_has_the_new_engines_precision(first: str) -> None:
    second = {"no": "bf16", "bf16": "no"}[first]
    torch.manual_seed(0)
    x, model = torch.randn(4, 8), nn.Linear(8, 8)
    exact = model(x)
    Engine(cpu=True, mixed_precision=first).prepare(model)
    again = Engine(cpu=True, mixed_precision=second).prepare(model)
    assert torch.equal(again(x), exact) == (second == "no")
    assert torch.equal(copy.deepcopy(again)(x), again(x))


def test_the_innermost_loader_is_the_active_one() -> None:
    engine = Engine()
    outer, inner = engine.prepare(DataLoader(Sequences(8), 4), DataLoader(Sequences(12), 4))
    assert engine.active_loader is None
    for _ in outer:
        assert engine.active_loader is outer
        for _ in inner:
            assert engine.active_loader is inner
            break
        assert engine.active_loader is outer
    assert engine.active_loader is None


def test_an_evaluation_within_a_window_does_not_disturb_it() -> None:
    engine = Engine(gradient_accumulation_steps=2)
    model, optimizer, _, loader = engine.prepare(*parts())
    held_out = engine.prepare(DataLoader(Sequences(4), 4))
    synchronized = []
    for batch in loader:
        with engine.accumulate(model):
            engine.backward(loss_of(model, batch, by_items=False))
            optimizer.step()
            synchronized.append(engine.sync_gradients)
        with torch.no_grad():
            for other in held_out:
                loss_of(model, other, by_items=False)
    assert synchronized == [False, True, True]
    assert engine.completed_steps == 2


def test_memory_is_given_back() -> None:
    engine = Engine(gradient_accumulation_steps=2)
    model, optimizer, scheduler, loader = engine.prepare(*parts())
    with engine.accumulate(model):
        engine.backward(loss_of(model, next(iter(loader)), by_items=False))
    gone = [weakref.ref(one) for one in (model, optimizer, scheduler)]
    raw = optimizer
    model, optimizer, scheduler, loader = engine.free_memory(model, optimizer, scheduler, loader)
    assert (model, optimizer, scheduler, loader) == (None, None, None, None)
    before = [p.clone() for p in raw.param_groups[0]["params"]]
    raw.step()  # no engine holds it back any more
    assert not torch.equal(before[0], raw.param_groups[0]["params"][0])
    del raw
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_states_by_automatic_names(tmp_path: Path) -> None:
    engine = Engine(project_dir=tmp_path, automatic_checkpoint_naming=True, total_limit=1)
    model, optimizer, _, loader = engine.prepare(*parts())
    for batch in loader:
        engine.backward(loss_of(model, batch, by_items=False))
        optimizer.step()
        engine.save_state()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    assert engine.load_state() == tmp_path / "checkpoints" / "checkpoint_2"
    assert all(torch.equal(model.state_dict()[name], kept[name]) for name in kept)
    assert engine.completed_steps == 3


def test_a_save_within_a_window_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(gradient_accumulation_steps=2)
    model, _, _, loader = engine.prepare(*parts())
    batch = next(iter(loader))
    with engine.accumulate(model):
        engine.backward(loss_of(model, batch, by_items=False))
    engine.save_state(tmp_path / "state")
    assert "in the middle of an accumulation window" in caplog.text


def test_the_package_offers_what_it_lists() -> None:
    assert all(getattr(diag, name) is not None for name in diag.__all__)
    assert set(diag.__all__) <= set(dir(diag))
    with pytest.raises(AttributeError):
        _ = diag.nonsense


def test_training_what_was_never_prepared_on_several_ranks_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Engine()
    engine.process = replace(engine.process, world_size=2)
    model = nn.Linear(2, 1)
    for _ in range(2):
        engine.backward(model(torch.ones(1, 2)).sum())
    assert caplog.text.count("No model was prepared, so each of the 2 ranks trains") == 1


def test_a_single_process_may_train_what_was_never_prepared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Engine().backward(nn.Linear(2, 1)(torch.ones(1, 2)).sum())
    assert "No model was prepared" not in caplog.text
