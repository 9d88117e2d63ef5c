"""Addresses and ports, without torch."""

from __future__ import annotations

import errno
import socket


def address_towards(host: str) -> str | None:
    """This machine's own address on the way to `host`; None where it cannot be told.

    A host name may resolve to a loopback address, which other nodes cannot reach. Nothing is sent:
    connecting a datagram socket only picks the route.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def is_port_taken(port: int) -> bool:
    """Is another process listening on `port`, on any address of this machine?"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
