"""Clients that a library would not be: they send what they like and read when they like."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import trio
from msgspec import Struct

from tests.component.http.tokens import bearer


class Answer(Struct):
    """Hold an answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """Hold one connection; h11 reads the answers but does not write the requests."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._unread = b""

    async def send(self, *pieces: bytes | str) -> None:
        for piece in pieces:
            await self.stream.send_all(piece.encode() if isinstance(piece, str) else piece)

    async def send_what_it_takes(self, data: bytes) -> None:
        """Send as much as the server lets us, as any client does before it looks for an answer."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            return

    async def answer(self, *, to: str = "GET", timeout_seconds: float = 10.0) -> Answer:
        """Read one answer; what follows it is kept for the next."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=to, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(self._unread) if self._unread else None
        head, body = None, bytearray()
        with trio.fail_after(timeout_seconds):
            while True:
                match event := parser.next_event():
                    case h11.NEED_DATA:
                        data = await self.stream.receive_some(65536)
                        if not data:
                            raise EOFError("the server closed the connection without a whole answer")
                        parser.receive_data(data)
                    case h11.Response():
                        head = event
                    case h11.Data():
                        body += event.data
                    case h11.EndOfMessage():
                        break
        self._unread = parser.trailing_data[0]
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(status=head.status_code, headers=headers, body=bytes(body))

    async def ends(self, *, timeout_seconds: float = 10.0) -> bool:
        """Read to the end; tell whether it was an orderly one without further bytes."""
        with trio.fail_after(timeout_seconds):
            try:
                return self._unread == b"" and await self.stream.receive_some(65536) == b""
            except trio.BrokenResourceError:
                return False

    def reset(self) -> None:
        """Drop the connection as a crashed machine's router would: with RST."""
        raw = self.stream.socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()


@asynccontextmanager
async def connect(port: int, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[RawClient]:
    """Open a connection to loopback, with a small window for a client that is going to be slow."""
    sock = trio.socket.socket()
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        yield RawClient(stream)


def request_text(
    method: str, path: str, *, headers: dict[str, str] | None = None, token: bool = True, version: str = "1.1"
) -> bytes:
    """Return the head of a request."""
    lines = {"host": "localhost", **(bearer() if token else {}), **(headers or {})}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/{version}\r\n{text}\r\n".encode()


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count
