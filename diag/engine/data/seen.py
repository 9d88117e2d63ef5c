"""What the probes are told: whose reading counts, what the training was handed, what is data time.

Without probes every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diag.probes import current


def handed(batch: Any, samples: int | None) -> None:
    """The training takes a batch of so many samples; None: the probes may look for themselves."""
    if current.session is not None:
        current.session.handed(batch, samples)


@contextmanager
def as_data_time() -> Iterator[None]:
    """The training waits for data."""
    session = current.session
    depth = session.begin_data() if session is not None else None
    try:
        yield
    finally:
        if session is not None and depth is not None:
            session.end_data(depth)
