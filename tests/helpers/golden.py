"""Golden files: expected output kept beside the tests.

To renew them after a wanted change: ``DIAG_RENEW_GOLDEN=1 python -m pytest tests/reports``,
then read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def assert_golden(name: str, actual: str) -> None:
    """Compare `actual` with tests/golden/<name>, or write it where renewal is asked for."""
    path = GOLDEN / name
    if os.environ.get("DIAG_RENEW_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(actual, encoding="utf-8")
    assert path.exists(), f"{path} is missing: see {__file__} on how to make it"
    assert actual == path.read_text(encoding="utf-8"), f"{name} differs: see {__file__}"
