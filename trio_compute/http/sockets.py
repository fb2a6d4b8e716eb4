"""Listening sockets, bound before anything heavy is imported; a port that is taken ends the process (D-10, A-06)."""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from trio_compute.errors import HostError
from trio_compute.settings import Settings

BACKLOG = 1024


class BoundSockets(NamedTuple):
    """Hold the listening sockets of both servers and the ports they really have."""

    external: list[socket.socket]
    internal: list[socket.socket]
    external_port: int
    internal_port: int

    def close(self) -> None:
        """Close all of them."""
        for sock in (*self.external, *self.internal):
            sock.close()


def bind_sockets(settings: Settings) -> BoundSockets:
    """Bind both servers and listen; raise HostError naming the port that cannot be had (contract 03 §1)."""
    external = [_bind_everywhere(settings.external_http_port)]
    internal: list[socket.socket] = []
    try:
        port = settings.internal_http_port
        for address in settings.internal_http_bind:
            sock = _bind_address(address, port)
            if sock is not None:
                internal.append(sock)
                port = sock.getsockname()[1]
        if not internal:
            raise HostError(f"cannot bind the internal server to any of {', '.join(settings.internal_http_bind)}")
    except HostError:
        for sock in (*external, *internal):
            sock.close()
        raise
    return BoundSockets(external, internal, external[0].getsockname()[1], port)


def _bind_everywhere(port: int) -> socket.socket:
    try:
        return _listen(socket.AF_INET6, "::", port, dual_stack=True)
    except OSError as error:
        if error.errno is not None and _is_taken(error):
            raise HostError(f"cannot bind the external server to port {port}: {error.strerror}") from error
    try:
        return _listen(socket.AF_INET, "0.0.0.0", port)
    except OSError as error:
        raise HostError(f"cannot bind the external server to port {port}: {error.strerror}") from error


def _bind_address(address: str, port: int) -> socket.socket | None:
    """Bind one address of the internal server; None when this machine does not have it, such as ::1 without IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return _listen(family, address, port)
    except OSError as error:
        if _is_taken(error):
            raise HostError(f"cannot bind the internal server to {address} port {port}: {error.strerror}") from error
        return None


def _is_taken(error: OSError) -> bool:
    return error.errno in {errno.EADDRINUSE, errno.EACCES}


def _listen(family: socket.AddressFamily, address: str, port: int, *, dual_stack: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
