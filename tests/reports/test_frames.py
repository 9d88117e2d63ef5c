"""A record as DataFrames: every rank's rows, with its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diag.errors import RecordError
from diag.record.schema import GAUGES, PHASES, STEPS
from diag.reports.frames import frames
from helpers.records import released_together, write_run


def test_all_ranks_stand_below_each_other(tmp_path: Path) -> None:
    own = np.full((3, 5, len(PHASES)), 10)
    own[1, :, PHASES.index("backward")] = 50
    write_run(tmp_path, released_together(own), name="three")
    found = frames(tmp_path / "three")
    assert list(found.steps.columns) == ["rank", *STEPS.names]
    assert list(found.gauges.columns) == ["rank", *GAUGES.names]
    assert found.steps.groupby("rank")["backward_ns"].mean().to_dict() == {0: 10, 1: 50, 2: 10}
    assert len(found.collectives) == 15
    assert set(found.events["rank"]) <= {0, 1, 2}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        frames(tmp_path)
