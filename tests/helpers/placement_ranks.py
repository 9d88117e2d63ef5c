"""`python -m helpers.placement_ranks DIRECTORY` as 2 ranks: every scenario of placed models."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diag.engine.process import join_job
from helpers import placement_meta, placement_remap, placement_training  # noqa: F401
from helpers.placement_tools import SCENARIOS
from helpers.ranks import say


def main() -> None:
    directory = Path(sys.argv[1])
    process = join_job(cpu=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        torch.manual_seed(process.rank)
        try:
            results[scenario.__name__] = scenario(process)
        except Exception:
            results[scenario.__name__] = traceback.format_exc()
    say(directory, process.rank, results)
    dist.barrier()
    # With a DDP alive, gloo aborts in some orderly exits.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
