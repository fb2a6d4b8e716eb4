"""What the original's client library says to the storage: the extended protocol, message by message (E-01)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_compute.embedded.wire import PROTOCOL_3, Reader, message

PARSE = b"P"
Message = tuple[bytes, bytes]


class RustClient:
    """Hold one connection after its login, and what the login brought."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._reader = Reader(stream)
        self.greeting: list[Message] = []

    async def receive(self) -> Message:
        """Return the next message; raise EOFError at the end."""
        with trio.fail_after(10):
            return await self._reader.exactly(1), await self._reader.body()

    async def until(self, *kinds: bytes) -> list[Message]:
        """Return messages up to the first of some kinds."""
        found = [await self.receive()]
        while found[-1][0] not in kinds:
            found.append(await self.receive())
        return found

    async def log_in(self, password: str, **parameters: str) -> None:
        words = [word for pair in {"user": "no_user", **parameters}.items() for word in pair]
        body = struct.pack("!I", PROTOCOL_3) + b"".join(word.encode() + b"\0" for word in [*words, ""])
        await self.stream.send_all(struct.pack("!I", len(body) + 4) + body)
        assert await self.receive() == (b"R", struct.pack("!I", 3))
        await self.stream.send_all(message(b"p", password.encode() + b"\0"))
        self.greeting = await self.until(b"Z", b"E")

    async def prepare(self, query: str) -> list[Message]:
        """Parse and describe a statement of no parameters under the name that the library gives it."""
        parse = message(PARSE, b"s0\0" + query.encode() + b"\0" + struct.pack("!H", 0))
        await self.stream.send_all(parse + message(b"D", b"Ss0\0") + message(b"S", b""))
        return await self.until(b"Z")

    async def execute(self) -> list[Message]:
        """Bind and execute what was prepared, and return all that comes of it."""
        await self.begin_execution()
        return await self.until(b"Z")

    async def begin_execution(self) -> None:
        bind = message(b"B", b"\0s0\0" + struct.pack("!HHH", 0, 0, 0))
        await self.stream.send_all(bind + message(b"E", b"\0" + struct.pack("!I", 0)) + message(b"S", b""))

    async def query(self, query: str) -> list[Message]:
        """Ask by the simple protocol."""
        await self.stream.send_all(message(b"Q", query.encode() + b"\0"))
        return await self.until(b"Z")


@asynccontextmanager
async def rust_client(address: str, password: str, **parameters: str) -> AsyncIterator[RustClient]:
    host, _, port = address.rpartition("@")[2].rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        client = RustClient(stream)
        await client.log_in(password, **parameters)
        yield client


def fields(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse."""
    return {field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field}
