"""After the script: the process group is left in order, and only when that is safe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from diag.launch.teardown import leave_process_group
from helpers.launching import run_worker

SCRIPT = """
import atexit, os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
destroy = dist.destroy_process_group
def destroyed(*args):
    print("destroyed", "model" in globals())
    destroy(*args)
dist.destroy_process_group = destroyed
model = DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
atexit.register(lambda: print("the script's own exit handler", dist.is_initialized()))
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "code", "lines"),
    [
        ("", 0, ["the script's own exit handler True", "destroyed False"]),
        ("1/0", 1, ["the script's own exit handler True"]),
    ],
)
def test_after_the_scripts_own_handlers(
    tmp_path: Path, ending: str, code: int, lines: list[str]
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(ending=ending))
    run = run_worker("train.py", cwd=tmp_path)
    assert (run.code, run.out.splitlines()) == (code, lines), run.err


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def main_with(**names: Any) -> ModuleType:
    module = ModuleType("__main__")
    vars(module).update(names)
    return module


def wrapped() -> Any:
    return DistributedDataParallel(torch.nn.Linear(2, 2))


@pytest.mark.usefixtures("group")
def test_objects_go_and_definitions_stay() -> None:
    main = main_with(model=wrapped(), nested={"trainer": [wrapped()]}, torch=torch, f=len, n=3)
    main.model.self_reference = main.model  # a cycle needs the collector
    leave_process_group(main)
    assert not dist.is_initialized()
    assert not {"model", "nested"} & set(vars(main))
    assert main.torch is torch
    assert main.__name__ == "__main__"


@pytest.mark.usefixtures("group")
def test_without_ddp_nothing_is_dropped() -> None:
    main = main_with(n=3)
    leave_process_group(main)
    assert not dist.is_initialized()
    assert main.n == 3


@pytest.mark.usefixtures("group")
def test_a_model_held_elsewhere_keeps_the_group() -> None:
    elsewhere = [wrapped()]
    leave_process_group(main_with(model=elsewhere[0]))
    assert dist.is_initialized()


def test_no_group_no_work() -> None:
    main = main_with(model=3)
    leave_process_group(main)
    assert main.model == 3
