"""Which process of the job this is, where the script made the process group itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from diag.engine.process import join_job


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Rank 5 of 8, in a group that sends nothing, with no launcher's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    dist.init_process_group("fake", rank=5, world_size=8, store=FakeStore())
    yield monkeypatch
    dist.destroy_process_group()


def test_without_a_launcher_all_ranks_are_taken_for_one_nodes(group: pytest.MonkeyPatch) -> None:
    process = join_job(cpu=True)
    assert (process.rank, process.world_size) == (5, 8)
    assert (process.local_rank, process.local_world_size) == (5, 8)
    assert not process.is_local_main


def test_the_launchers_variables_come_first(group: pytest.MonkeyPatch) -> None:
    group.setenv("LOCAL_WORLD_SIZE", "4")
    assert join_job(cpu=True).local_rank == 1
    group.setenv("LOCAL_RANK", "2")
    assert join_job(cpu=True).local_rank == 2
