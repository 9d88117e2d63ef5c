"""docs/from-accelerate.md: complete for the Accelerate it speaks of, and true of Engine."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from torch import nn

import diag
from diag import DDPOptions, Engine, FSDPOptions
from diag.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-accelerate.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout")
accelerate = pytest.importorskip("accelerate")
utils = pytest.importorskip("accelerate.utils")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def words(page: str) -> set[str]:
    """Every identifier within back quotes."""
    quoted = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    return {word for part in quoted for word in re.findall(r"\w+", part)}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(cpu=True)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def described_version(page: str) -> bool:
    described = re.search(r"Compared with Accelerate (\d+\.\d+)", page)
    assert described is not None
    return str(accelerate.__version__).startswith(described[1] + ".")


def test_every_name_of_an_accelerator_is_on_the_page(page: str, words: set[str]) -> None:
    if not described_version(page):
        pytest.skip("another version than the page describes")
    assert public(accelerate.Accelerator) - words == set()


CONFIGURATIONS = [
    "AutocastKwargs",
    "DataLoaderConfiguration",
    "DistributedDataParallelKwargs",
    "FullyShardedDataParallelPlugin",
    "GradScalerKwargs",
    "GradientAccumulationPlugin",
    "InitProcessGroupKwargs",
    "ProjectConfiguration",
]


@pytest.mark.parametrize("name", ["Accelerator", *CONFIGURATIONS])
def test_every_option_is_on_the_page(name: str, page: str, words: set[str]) -> None:
    if not described_version(page):
        pytest.skip("another version than the page describes")
    if name == "Accelerator":
        options = set(inspect.signature(accelerate.Accelerator).parameters)
    else:
        options = {field.name for field in dataclasses.fields(getattr(utils, name))}
    # Those of these two are all meant by their one row.
    meant = {"num_steps": "gradient_accumulation_steps", "cache_enabled": "cache_enabled"}
    assert {meant.get(option, option) for option in options} - words == set()


def test_every_name_of_an_accelerator_is_there_or_says_what_is_instead(engine: Engine) -> None:
    for name in public(accelerate.Accelerator) - public(Engine):
        with pytest.raises(AttributeError, match=rf"^Engine has no '{name}': .+"):
            getattr(engine, name)


def test_what_the_page_calls_the_same_is_there(page: str) -> None:
    listed = page.partition("The same, with the arguments you know:")[2].partition(".\n")[0]
    names = re.findall(r"`(\w+)`", listed)
    assert len(names) > 50
    assert [name for name in names if not hasattr(Engine, name)] == []
    wanting = {name: sorted(arguments(accelerate.Accelerator, name)) for name in names}
    for name, theirs in wanting.items():
        wanting[name] = [one for one in theirs if one not in arguments(Engine, name)]
    assert {name: missing for name, missing in wanting.items() if missing} == {}


def test_every_argument_of_an_accelerator_is_there_or_says_what_is_instead(engine: Engine) -> None:
    shared = public(accelerate.Accelerator) & public(Engine)
    lacking = {
        (name, one)
        for name in shared
        for one in arguments(accelerate.Accelerator, name) - arguments(Engine, name)
    }
    assert ("unwrap_model", "keep_fp32_wrapper") in lacking
    for name, one in {*lacking, ("autocast", "autocast_handler")}:
        with pytest.raises(UsageError) as error:
            getattr(engine, name)(**{one: object()})
        assert one in error.value.what
        assert error.value.hint


def test_arguments_that_ask_for_nothing_pass(engine: Engine) -> None:
    model = nn.Linear(1, 1)
    assert engine.unwrap_model(model, keep_fp32_wrapper=True) is model
    assert engine.get_tracker("jsonl", unwrap=False).name == "jsonl"
    with pytest.raises(UsageError):
        engine.unwrap_model(model, keep_fp32_wrapper=False)


def arguments(kind: type, name: str) -> set[str]:
    """Those one may give by name; the first is given by position."""
    member = inspect.getattr_static(kind, name)
    if isinstance(member, property):
        return set()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(getattr(kind, name)).parameters.values())
    return {p.name for p in parameters[2:] if p.kind not in kinds}


def test_every_engine_member_the_page_names_is_there(page: str, engine: Engine) -> None:
    # What is said to be Accelerate's begins with `accelerator.` there.
    for name in set(re.findall(r"\bengine\.(\w+)", page)) - {"placement"}:
        assert hasattr(engine, name), name
    for name in set(re.findall(r"\bdiag\.([a-z_]+)\b", page)) - {"engine"}:
        assert hasattr(diag, name), name


def test_every_option_of_engine_the_page_names_is_there(page: str) -> None:
    known = set(inspect.signature(Engine).parameters)
    for call in re.findall(r"Engine\(([a-z_]+)=", page):
        assert call in known
    for options in (DDPOptions, FSDPOptions):
        fields = {field.name for field in dataclasses.fields(options)}
        for arguments in re.findall(rf"{options.__name__}\(([^)]*)\)", page):
            for name in re.findall(r"\b([a-z_]+)\b(?==|,|$)", arguments):
                assert name in fields, name
