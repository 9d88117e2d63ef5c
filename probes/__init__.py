"""What runs inside a rank: it observes, records and never judges, and never breaks its host."""

from diag.probes.session import ProbeConfig, Session, install

__all__ = ["ProbeConfig", "Session", "install"]
