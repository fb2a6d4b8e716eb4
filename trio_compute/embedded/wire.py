"""The server's side of the Postgres protocol, as much of it as Neon's storage speaks (contract 07 §10.1)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence

import trio

PROTOCOL_3 = 196608
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
MAX_MESSAGE_BYTES = 1024 * 1024
COPY_SLICE_BYTES = 128 * 1024


class WireError(Exception):
    """Answer a command with an ErrorResponse; a fatal one also ends the connection."""

    def __init__(self, text: str, *, sqlstate: str = "XX000", fatal: bool = False) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.fatal = fatal


class Session:
    """Be one client connection after its start-up packet."""

    def __init__(self, stream: trio.SocketStream, reader: Reader, parameters: dict[str, str]) -> None:
        self._stream = stream
        self._reader = reader
        self.parameters = parameters

    def option(self, name: str) -> str | None:
        """Return an item of the `options` parameter, which reads `-c key=value key=value`."""
        for word in self.parameters.get("options", "").split():
            key, equals, value = word.removeprefix("-c").partition("=")
            if equals and key == name:
                return value
        return None

    async def send_rows(self, columns: Sequence[str], rows: Sequence[Sequence[str | None]], tag: str) -> None:
        """Answer with text rows."""
        fields = b"".join(name.encode() + b"\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0) for name in columns)
        data = message(b"T", struct.pack("!H", len(columns)) + fields)
        for row in rows:
            data += message(b"D", struct.pack("!H", len(row)) + b"".join(map(_value, row)))
        await self.send(data + message(b"C", tag.encode() + b"\0"))

    async def begin_copy(self) -> None:
        """Announce copy data."""
        await self.send(message(b"H", struct.pack("!bH", 0, 0)))

    async def send_copy(self, data: bytes) -> None:
        """Send one slice of copy data."""
        await self.send(message(b"d", data))

    async def end_copy(self) -> None:
        """End copy data."""
        await self.send(message(b"c", b""))

    async def complete(self, tag: str) -> None:
        """End a command."""
        await self.send(message(b"C", tag.encode() + b"\0"))

    async def wait_hung_up(self) -> None:
        """Say nothing more until the client is gone."""
        while True:
            await self.receive()

    async def send_error(self, error: WireError) -> None:
        """Send an ErrorResponse."""
        severity = "FATAL" if error.fatal else "ERROR"
        fields = (("S", severity), ("V", severity), ("C", error.sqlstate), ("M", str(error)))
        body = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields) + b"\0"
        await self.send(message(b"E", body))

    async def send(self, data: bytes) -> None:
        """Send messages that are encoded already."""
        await self._stream.send_all(data)

    async def drop(self) -> None:
        """Close the connection without another word."""
        await trio.aclose_forcefully(self._stream)

    async def receive(self) -> tuple[bytes, bytes]:
        """Return kind and body of the next message; raise EOFError at the end."""
        kind = await self._reader.exactly(1)
        return kind, await self._reader.body()


class Reader:
    """Read exact amounts from a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def exactly(self, count: int) -> bytes:
        """Return `count` bytes; raise EOFError if the peer ends before."""
        while len(self._buffer) < count:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def body(self) -> bytes:
        """Return a body that is preceded by its length."""
        (length,) = struct.unpack("!I", await self.exactly(4))
        if not 4 <= length <= MAX_MESSAGE_BYTES:
            raise EOFError
        return await self.exactly(length - 4)


Authenticate = Callable[[Session, str], None]
HandleQuery = Callable[[Session, str], Awaitable[None]]


async def serve_session(
    stream: trio.SocketStream, *, authenticate: Authenticate | None, handle_query: HandleQuery
) -> None:
    """Serve one client: log in, with a password when there is an `authenticate`, then answer simple queries."""
    try:
        async with stream:
            session = await _start_up(stream)
            if session is None:
                return
            if authenticate is not None and not await _log_in(session, authenticate):
                return
            await session.send(message(b"R", struct.pack("!I", 0)) + _parameter("client_encoding", "UTF8") + _ready())
            await _answer_queries(session, handle_query)
    except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def _start_up(stream: trio.SocketStream) -> Session | None:
    reader = Reader(stream)
    while True:
        body = await reader.body()
        (code,) = struct.unpack("!I", body[:4])
        if code in {SSL_REQUEST, GSSENC_REQUEST}:
            await stream.send_all(b"N")
        elif code == PROTOCOL_3 or code >> 16 == 3:
            words = [word.decode(errors="replace") for word in body[4:].split(b"\0")]
            session = Session(stream, reader, dict(zip(words[0::2], words[1::2], strict=False)))
            if code != PROTOCOL_3:
                # A newer minor version: say that 3.0 is what we speak.
                await session.send(message(b"v", struct.pack("!II", 0, 0)))
            return session
        else:
            return None


async def _log_in(session: Session, authenticate: Authenticate) -> bool:
    await session.send(message(b"R", struct.pack("!I", 3)))
    kind, body = await session.receive()
    if kind != b"p":
        return False
    try:
        authenticate(session, body.rstrip(b"\0").decode(errors="replace"))
    except WireError as error:
        await session.send_error(error)
        return False
    return True


async def _answer_queries(session: Session, handle_query: HandleQuery) -> None:
    while True:
        kind, body = await session.receive()
        if kind == b"X":
            return
        try:
            if kind != b"Q":
                raise WireError(f"message {kind!r} is not supported here", sqlstate="0A000")
            await handle_query(session, body.rstrip(b"\0").decode(errors="replace"))
        except WireError as error:
            await session.send_error(error)
            if error.fatal:
                return
        await session.send(_ready())


def message(kind: bytes, body: bytes) -> bytes:
    """Return a protocol message."""
    return kind + struct.pack("!I", len(body) + 4) + body


def _value(text: str | None) -> bytes:
    if text is None:
        return struct.pack("!i", -1)
    data = text.encode()
    return struct.pack("!i", len(data)) + data


def _parameter(name: str, value: str) -> bytes:
    return message(b"S", f"{name}\0{value}\0".encode())


def _ready() -> bytes:
    return message(b"Z", b"I")
