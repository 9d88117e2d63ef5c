"""diag: where did the speed-up go?"""

from __future__ import annotations

__version__ = "0.1.0"


def samples(count: int) -> None:
    """Say how many samples this rank has just trained on; outranks what diag reads off the loader.

    Call it once per micro-batch, from the training loop. Without diag's probes it does nothing.

    Args:
        count: samples of this rank's micro-batch, at least 0.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"diag.samples takes a number of samples, got {count}")
    from diag.probes import current

    if current.session is not None:
        current.session.samples(int(count))
