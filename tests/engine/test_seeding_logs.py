"""Seeds and loggers in one process; `test_collect_ranks` has several."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import pytest
import torch

from diag.engine.logs import get_logger
from diag.engine.seeding import set_seed


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


@pytest.mark.parametrize("seed", [0, 7, 2**40, -3])
def test_every_generator_starts_again(seed: int) -> None:
    assert set_seed(seed) == seed
    first = draws()
    set_seed(seed + 1)
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    set_seed(seed)
    assert draws() == first


def test_the_rank_needs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert set_seed(10, device_specific=True) == 13


def test_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        set_seed(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_logger_names_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger("tests.engine.lines")
    with caplog.at_level("INFO"):
        logger.info("%d of %d", 1, 2)
        logger.warning_once("careful %s", "now")
        logger.warning_once("careful %s", "now")
        logger.warning_once("careful %s", "again")
        logger.info("in order", in_order=True)
    told = [(record.funcName, record.getMessage()) for record in caplog.records]
    name = "test_a_logger_names_the_callers_line"
    assert told == [
        (name, "1 of 2"),
        (name, "careful now"),
        (name, "careful again"),
        (name, "in order"),
    ]


def test_only_the_main_process_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    logger = get_logger("tests.engine.ranks")
    logger.warning("not mine")
    logger.warning("mine too", main_process_only=False)
    assert [record.getMessage() for record in caplog.records] == ["[rank 1] mine too"]


def test_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_logger("tests.engine.a").logger.level == logging.NOTSET
    assert get_logger("tests.engine.b", "debug").logger.level == logging.DEBUG
    monkeypatch.setenv("DIAG_LOG_LEVEL", "error")
    assert get_logger("tests.engine.c").logger.level == logging.ERROR
