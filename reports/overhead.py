"""What the probes cost the run, by their own account."""

from __future__ import annotations

from diag.reports.loaded import Loaded
from diag.reports.model import ProbeOverhead


def probe_overhead(loaded: Loaded) -> ProbeOverhead:
    """Share of the used steps that the probes took on the costliest rank.

    The probes time their own calls in every eighth step, which stands for the seven after it;
    the writer's flushes and the gauges of background threads are included in full: on a busy
    machine those take time from the training as well.
    """
    panel, used = loaded.panel, loaded.used
    if not loaded.has_steps:
        return ProbeOverhead(None, "no steady step to measure it on")
    steps = (panel.end_ns - panel.start_ns)[:, used].sum(axis=1)
    share = (panel.probe_ns[:, used].sum(axis=1) / steps).max()
    return ProbeOverhead(
        float(share),
        "time inside the probes and in writing the record, over the time of the used steps; "
        "the costliest rank",
    )
