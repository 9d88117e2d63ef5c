"""Arrow arrays built by hand equal pyarrow's own, refuse what does not fit, and leave pandas alone."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from diag.record.columns import column


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -2, 2**62], pa.int64()),
        ([1, None, 3, None], pa.int64()),
        ([None] * 9, pa.int32()),
        ([0, 127, -128], pa.int8()),
        ([], pa.int16()),
        ([0.5, None, 2], pa.float32()),
        ([1.5], pa.float64()),
        (["a", "", None, "µ∞", "b" * 100], pa.string()),
        ([], pa.string()),
    ],
)
def test_equals_pyarrows_own(values: list[object], kind: pa.DataType) -> None:
    built = column(values, kind)
    built.validate(full=True)
    assert built.equals(pa.array(values, kind))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.5], pa.int64()),
        (["1"], pa.int64()),
        ([2**63], pa.int64()),
        ([128], pa.int8()),
        ([3], pa.string()),
        (["x"], pa.float32()),
    ],
)
def test_refuses_what_does_not_fit(values: list[object], kind: pa.DataType) -> None:
    with pytest.raises((TypeError, OverflowError)):
        column(values, kind)


def test_writing_and_reading_a_record_do_not_import_pandas(tmp_path: object) -> None:
    """In a training process the import would hold up the training."""
    code = f"""
import sys
from pathlib import Path
from diag.record.reader import read_run
from diag.record.writer import RankWriter
rank = Path({str(tmp_path)!r}) / "run" / "ranks" / "00000-0"
writer = RankWriter(rank)
writer.append_event((1, 0, None, "gc", "{{}}"))
writer.append_step((0, 1, 8, 1, 1, 1, 1, 1, 1, 1, None, None, 1, 0, 0))
writer.flush()
writer.write_rank_json({{"rank": 0}})
writer.close()
assert read_run(rank.parents[1]).ranks[0].steps.num_rows == 1
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
