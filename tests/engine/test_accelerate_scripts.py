"""Accelerate's own test scripts, from its installed wheel, pass over diag's Engine.

What is not driven, and why, stands in docs/from-accelerate.md; the lists here are its other half.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from helpers.ranks import run_ranks

pytest.importorskip("accelerate")
pytestmark = pytest.mark.ranks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-accelerate.md"

_SPLITS = [
    ",".join(name for name, on in zip(("split", "dispatch", "sync"), chosen, strict=True) if on)
    or "default"
    for chosen in product((True, False), repeat=3)
]
PASSES: dict[str, list[str]] = {
    "ops": [
        "test_gather",
        "test_gather_object",
        "test_gather_non_contiguous",
        "test_broadcast",
        "test_pad_across_processes",
        "test_reduce_sum",
        "test_reduce_mean",
        "test_reduce_max",
        "test_op_checker",
    ],
    "sync": [
        "test_dataloader_break",
        "test_distributed_sync",
        "test_distributed_sync_multiple_fwd",
        *(f"test_gradient_accumulation[{split}]" for split in _SPLITS),
        *(
            f"test_gradient_accumulation_with_opt_and_scheduler[{split}]"
            for split in _SPLITS
            if split.startswith("split")
        ),
    ],
    "data_loop": [
        "test_default_ensures_even_batch_sizes",
        "test_can_disable_even_batches",
        "test_can_join_uneven_inputs",
        "test_join_can_override_even_batches",
        "test_join_can_override_for_mixed_type_dataloaders",
        "test_data_loader[in order]",
        "test_data_loader[shuffled]",
        "test_data_loader[batch_sampler]",
        "test_data_loader[batch_size=None]",
        "test_stateful_dataloader",
        "test_stateful_dataloader_save_state",
    ],
    "general": [
        "process_execution_check",
        "init_state_check",
        "test_split_between_processes_list",
        "test_split_between_processes_nested_dict",
        "test_split_between_processes_tensor",
        "test_split_between_processes_evenly",
        "rng_sync_check",
        "dl_preparation_check",
        "central_dl_preparation_check",
        "custom_sampler_check",
        "check_seedable_sampler",
        "check_seedable_sampler_with_data_seed",
        "training_check[seedable]",
        "test_trigger",
    ],
    "metrics": [
        *(
            f"test_torch_metrics[split={split},dispatch={dispatch}]"
            for split, dispatch in product((True, False), repeat=2)
        ),
        "test_torch_metrics[512]",
        "test_gather_for_metrics_drop_last",
        "test_gather_for_metrics_with_iterable_dataset",
        "test_gather_for_metrics_with_non_tensor_objects_iterable_dataset",
    ],
    "checkpointing": ["training_function", "training_function[resume epoch_0]"],
}
CASES = [f"{group}: {name}" for group, names in PASSES.items() for name in names]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("accelerate")
    return run_ranks("helpers.accelerate_ranks", 2, directory, *PASSES, timeout=90)


@pytest.mark.parametrize("case", CASES)
def test_it_passes(ranks: list[dict[str, Any]], case: str) -> None:
    for answers in ranks:
        assert answers.get(case, "not reached: an earlier case failed") == "passed"


def test_nothing_is_driven_in_silence(ranks: list[dict[str, Any]]) -> None:
    assert sorted(ranks[0]) == sorted(CASES)


def test_a_single_process_needs_no_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    from helpers import accelerate_ranks

    sync = accelerate_ranks.script("test_sync")
    sync.test_noop_sync(sync.Accelerator())
    for name, run in accelerate_ranks.ops():
        run()
        assert name in PASSES["ops"]


@pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")
def test_the_page_names_what_passes() -> None:
    section = PAGE.read_text().partition("## Accelerate's own test scripts")[2]
    passing = section.partition("Not driven, and why")[0]
    missing = {case.partition("[")[0] for names in PASSES.values() for case in names}
    assert [name for name in sorted(missing) if f"`{name}`" not in passing] == []
