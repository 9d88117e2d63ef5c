"""A record as pandas DataFrames, for questions that no report asks.

from diag.reports.frames import frames
steps = frames("diag-runs/demo").steps
steps.groupby("rank")["backward_ns"].describe()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from diag.record.reader import RankRecord, read_run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Frames:
    """One DataFrame per stream, all ranks below each other, with a column `rank` in front.

    Columns, units and meaning are those of diag.record.schema.
    """

    steps: pd.DataFrame
    collectives: pd.DataFrame
    gauges: pd.DataFrame
    events: pd.DataFrame


def frames(run: str | Path) -> Frames:
    """Load the run directory `run`.

    Raises:
        RecordError: it cannot be read as a run.
    """
    ranks = read_run(Path(run)).ranks.values()
    return Frames(
        steps=_stacked(ranks, lambda record: record.steps),
        collectives=_stacked(ranks, lambda record: record.collectives),
        gauges=_stacked(ranks, lambda record: record.gauges),
        events=_stacked(ranks, lambda record: record.events),
    )


def _stacked(ranks: Iterable[RankRecord], stream: Callable[[RankRecord], pa.Table]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for record in ranks:
        part = stream(record).to_pandas()
        part.insert(0, "rank", record.rank)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
