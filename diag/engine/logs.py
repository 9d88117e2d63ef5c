"""Loggers that speak once for the whole job."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import Any

import torch.distributed as dist

from diag.engine import wire
from diag.engine.process import rank_and_world_size


class RankLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take two more arguments.

    - `main_process_only` (True): rank 0 alone logs.
    - `in_order` (False): the ranks log one after the other. Every rank must make the call; it
      waits for the others whatever its own level, so that ranks with different levels do not hang.

    What may come from several ranks begins with `[rank r]`.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self._warned: set[str] = set()

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        main_process_only = kwargs.pop("main_process_only", True)
        in_order = kwargs.pop("in_order", False)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        rank, world_size = rank_and_world_size()
        if world_size > 1 and (in_order or not main_process_only):
            msg = f"[rank {rank}] {msg}"
        if not in_order:
            if rank == 0 or not main_process_only:
                super().log(level, msg, *args, **kwargs)
            return
        for turn in range(world_size):
            if turn == rank:
                super().log(level, msg, *args, **kwargs)
            if dist.is_initialized():
                wire.barrier()

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        return msg, kwargs

    def warning_once(self, msg: str, *args: object, **kwargs: Any) -> None:
        """`warning`, the first time for this text and these arguments."""
        key = msg % args if args else msg
        if key in self._warned:
            return
        self._warned.add(key)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        self.warning(msg, *args, **kwargs)


def get_logger(name: str, log_level: str | None = None) -> RankLogger:
    """The logger `name`, as the standard library's, that speaks once for the whole job.

    Needs no Engine: before there is a process group the launcher's variables tell the rank.

    Args:
        log_level: its level; else the environment's DIAG_LOG_LEVEL, else it is left as it is.
    """
    logger = logging.getLogger(name)
    level = log_level or os.environ.get("DIAG_LOG_LEVEL")
    if level:
        logger.setLevel(level.upper())
    return RankLogger(logger)
