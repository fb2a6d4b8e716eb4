"""How the embedded receiver waits for a primary that is not there (Q-21)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_compute.embedded import receiver
from trio_compute.embedded.dev import DEFAULT_POSTGRES_PORT
from trio_compute.embedded.free_ports import _DEFAULT_EPHEMERAL_START, free_port
from trio_compute.embedded.receiver import Receiver
from trio_compute.embedded.timelines import Timeline
from trio_compute.host.run_as import RunAs


def connected_to_itself(port: int) -> trio.SocketStream:
    """Return what the kernel makes when it gives the wanted port to the client."""
    sock = trio.socket.from_stdlib_socket(socket.socket())
    stdlib = sock._sock  # type: ignore[attr-defined]
    stdlib.setblocking(True)
    stdlib.bind(("127.0.0.1", port))
    stdlib.connect(("127.0.0.1", port))
    stdlib.setblocking(False)
    return trio.SocketStream(sock)


async def test_a_connection_to_itself_is_closed_and_leaves_the_port_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-21: Postgres can bind 1 port of 1 at once."""
    port = free_port()

    async def unlucky(_host: str, port: int) -> trio.SocketStream:
        return connected_to_itself(port)

    monkeypatch.setattr(trio, "open_tcp_stream", unlucky)
    with pytest.raises(ConnectionRefusedError, match="answered itself"):
        await receiver.connect(port)
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()


async def test_a_peer_that_is_gone_at_once_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-21: who the peer is cannot be asked then; 1 socket of 1 is closed all the same."""
    stream = connected_to_itself(free_port())
    stream.socket.shutdown(socket.SHUT_RDWR)

    async def opened(_host: str, _port: int) -> trio.SocketStream:
        return stream

    monkeypatch.setattr(trio, "open_tcp_stream", opened)
    with pytest.raises(OSError, match="not connected"):
        await receiver.connect(1)
    assert stream.socket.fileno() == -1


async def test_a_connection_to_somebody_else_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q-21: 1 of 1."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        server.listen()
        async with await receiver.connect(server.getsockname()[1]) as stream:
            assert stream.socket.getpeername() == server.getsockname()


async def test_a_closed_port_is_asked_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """Q-21: 9 questions in the first half second, then 10 a second in place of 66."""
    asked: list[float] = []

    async def refused(port: int) -> trio.SocketStream:
        asked.append(trio.current_time())
        raise ConnectionRefusedError(port)

    monkeypatch.setattr(receiver, "connect", refused)
    began = trio.current_time()
    timeline = Timeline("f" * 32, tmp_path, tmp_path, RunAs())
    with trio.move_on_after(60):
        await Receiver(timeline, "nobody", (1,), print).run()
    moments = [moment - began for moment in asked]
    assert len([moment for moment in moments if moment < 0.5]) >= 9
    assert len([moment for moment in moments if 10 <= moment < 60]) in range(499, 502)


def test_the_default_port_is_none_that_clients_are_given() -> None:
    """Q-21: below 32768, where Linux begins."""
    assert 1024 < DEFAULT_POSTGRES_PORT < _DEFAULT_EPHEMERAL_START
