"""The network as the ranks will use it: the host's own name and its interfaces."""

from __future__ import annotations

import socket
import time

from diag.doctor.facts import Interface, Network


def read_network() -> Network:
    """May take as long as the name service does."""
    name = socket.gethostname()
    start = time.monotonic()
    addresses, error = resolve(name)
    seconds = time.monotonic() - start
    return Network(name, addresses, error, seconds, read_interfaces())


def resolve(name: str) -> tuple[tuple[str, ...], str | None]:
    """The addresses of `name`, or the name service's error."""
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return (), str(error)
    return tuple(sorted({str(entry[4][0]) for entry in found})), None


def read_interfaces() -> tuple[Interface, ...]:
    import psutil  # here: `import diag.doctor` stays light

    up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    families = (socket.AF_INET, socket.AF_INET6)
    return tuple(
        Interface(
            name,
            up.get(name, False),
            tuple(a.address for a in addresses if a.family in families),
        )
        for name, addresses in sorted(psutil.net_if_addrs().items())
    )
