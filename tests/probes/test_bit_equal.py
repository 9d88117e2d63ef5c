"""The script computes bit for bit the same with and without probes, on real gloo ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.bit_equal import SCENARIOS
from helpers.ranks import run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("world_size", [2, 3])
def test_same_bits_with_and_without_probes(world_size: int, tmp_path: Path) -> None:
    few = ("fp32", "bf16", "batch-norm", "fsdp2")
    names = [name for name in SCENARIOS if world_size == 2 or name in few]
    answers = run_ranks("helpers.bit_equal", world_size, tmp_path, *names)
    for rank, answer in enumerate(answers):
        for name in names:
            assert answer[name]["on"] == answer[name]["off"], (rank, name)
            assert answer[name]["failures"] == {}, (rank, name)
            steps = tmp_path / name / "ranks" / f"{rank:05d}-0" / "steps.arrows"
            assert steps.stat().st_size > 0
