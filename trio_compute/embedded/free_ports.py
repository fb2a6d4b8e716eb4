"""Ports for servers that cannot choose one themselves, such as Postgres."""

from __future__ import annotations

import itertools
import random
import socket
from pathlib import Path

from trio_compute.errors import HostError

LOWEST_PORT = 10_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_EPHEMERAL_START = 32_768
_numbers = itertools.count(random.randrange(1_000_000))  # noqa: S311  (no secret: it keeps processes apart)


def free_port() -> int:
    """Return a TCP port that is free, and that the kernel gives to nobody who lets it choose.

    Between our look and the server's own bind, anybody's connection may take a port of the ephemeral
    range; one below that range is only taken by name. No port is returned twice by one process.
    Raises HostError when none is free.
    """
    ports = range(LOWEST_PORT, max(_ephemeral_start(), LOWEST_PORT + 1000))
    for _ in ports:
        port = ports[next(_numbers) % len(ports)]
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise HostError(f"no TCP port between {ports.start} and {ports.stop - 1} is free")


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _DEFAULT_EPHEMERAL_START
