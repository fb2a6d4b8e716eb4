"""The server's side of the Postgres protocol, as much of it as Neon's storage speaks (contract 07 §10.1)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Awaitable, Callable, Sequence

import trio

from trio_compute.embedded.tokens import Issuer, Service, StorageClaims

PROTOCOL_3 = 196608
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
MAX_MESSAGE_BYTES = 1024 * 1024
LAST_WORD_SECONDS = 0.5
SHUTDOWN = "57P01"
CODE = struct.Struct("!I")


class WireError(Exception):
    """Answer a command with an ErrorResponse of severity ERROR, which Neon's storage never leaves.

    `prepared` is what is said in place of the text to who asked by the extended protocol, if that is something else.
    """

    def __init__(
        self, text: str, *, sqlstate: str = "XX000", closes: bool = False, prepared: str | None = None
    ) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.closes = closes
        self.prepared = text if prepared is None else prepared


def unauthorized(reason: str, *, closes: bool = False) -> WireError:
    """Return what is said to who may not do something; the reason is told in the extended protocol only."""
    return WireError("JWT authentication error", closes=closes, prepared=f"Unauthorized: {reason}")


class Session:
    """Be one client connection after its start-up packet; `claims` are those of its token, None if none is needed."""

    def __init__(self, stream: trio.SocketStream, reader: Reader, parameters: dict[str, str]) -> None:
        self._stream = stream
        self._reader = reader
        self._sending = False
        self.parameters = parameters
        self.claims: StorageClaims | None = None

    def require(self, tenant: str, service: Service) -> None:
        """Raise WireError unless the token is good for a tenant at a service."""
        refusal = None if self.claims is None else self.claims.refusal(tenant, service)
        if refusal is not None:
            raise unauthorized(refusal)

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

    async def send_copy(self, data: bytes, sizes: Sequence[int] = (MAX_MESSAGE_BYTES,)) -> None:
        """Send copy data in pieces of some sizes, one after another and again from the first."""
        pieces, at, lengths = bytearray(), 0, itertools.cycle(sizes)
        while at < len(data):
            length = next(lengths)
            pieces += message(b"d", data[at : at + length])
            at += length
        await self.send(bytes(pieces))

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

    async def send_error(self, error: WireError, *, prepared: bool = False) -> None:
        """Send an ErrorResponse."""
        fields = (("S", "ERROR"), ("C", error.sqlstate), ("M", error.prepared if prepared else str(error)))
        body = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields) + b"\0"
        await self.send(message(b"E", body))

    async def send(self, data: bytes) -> None:
        """Send messages that are encoded already."""
        self._sending = True
        await self._stream.send_all(data)
        self._sending = False

    async def say_goodbye(self) -> None:
        """Tell who waits for an answer that we go away; a message that was begun is cut instead."""
        if not self._sending:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WORD_SECONDS):
                await self.send_error(WireError("shutdown", sqlstate=SHUTDOWN))

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


def token_login(issuer: Issuer) -> Authenticate:
    """Return a way to log in with tokens of an issuer as passwords; which tenant they are for is asked later."""

    def authenticate(session: Session, password: str) -> None:
        try:
            claims = issuer.storage_claims(password)
            claims.require_tenant()
        except ValueError as error:
            raise unauthorized(str(error), closes=True) from None
        session.claims = claims

    return authenticate


Authenticate = Callable[[Session, str], None]
HandleQuery = Callable[[Session, str], Awaitable[None]]


async def serve_session(
    stream: trio.SocketStream, *, authenticate: Authenticate | None, handle_query: HandleQuery
) -> None:
    """Serve one client: log in, with a password when there is an `authenticate`, then answer queries of both kinds.

    If this is cancelled while a query waits for its answer, the client is told so before it is hung up on.
    """
    try:
        async with stream:
            session = await _start_up(stream)
            if session is None:
                return
            if authenticate is not None and not await _log_in(session, authenticate):
                return
            greeting = _TRUSTED if authenticate is None else _KNOWN
            await session.send(message(b"R", struct.pack("!I", 0)) + greeting + _ready())
            await _Conversation(session, handle_query).run()
    except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def _start_up(stream: trio.SocketStream) -> Session | None:
    reader = Reader(stream)
    while True:
        body = await reader.body()
        if len(body) < CODE.size:
            return None
        (code,) = CODE.unpack_from(body)
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


class _Conversation:
    """Answer simple queries, and extended ones as Neon's storage does: one statement, no name, no parameters."""

    def __init__(self, session: Session, handle_query: HandleQuery) -> None:
        self._session = session
        self._handle_query = handle_query
        self._statement = ""

    async def run(self) -> None:
        going_on = True
        while going_on:
            kind, body = await self._session.receive()
            match kind:
                case b"Q":
                    going_on = await self._simple(_text(body))
                case b"E":
                    going_on = await self._execute()
                case b"P":
                    self._statement = _text(body.partition(b"\0")[2])
                    await self._session.send(message(b"1", b""))
                case _ if kind in _ACKNOWLEDGED:
                    await self._session.send(_ACKNOWLEDGED[kind])
                case _:  # the end, or what nobody may say here
                    going_on = False

    async def _simple(self, query: str) -> bool:
        try:
            await self._handle(query)
        except WireError as error:
            await self._session.send_error(error)
            if error.closes:
                return False
        await self._session.send(_ready())
        return True

    async def _execute(self) -> bool:
        """Run the statement; readiness is told when the client asks for it by Sync."""
        try:
            await self._handle(self._statement)
        except WireError as error:
            await self._session.send_error(error, prepared=True)
            return not error.closes
        return True

    async def _handle(self, query: str) -> None:
        try:
            await self._handle_query(self._session, query)
        except trio.Cancelled:
            await self._session.say_goodbye()
            raise


def _text(body: bytes) -> str:
    return body.partition(b"\0")[0].decode(errors="replace")


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


_KNOWN = _parameter("client_encoding", "UTF8")
_TRUSTED = _KNOWN + _parameter("integer_datetimes", "on") + _parameter("server_version", "14.1")
_ACKNOWLEDGED = {
    b"B": message(b"2", b""),
    b"C": message(b"3", b""),
    b"D": message(b"t", struct.pack("!H", 0)) + message(b"n", b""),
    b"S": _ready(),
}
