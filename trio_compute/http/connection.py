"""One HTTP/1.1 connection: hypercorn's protocol, with our own reading, sending and ending.

hypercorn's own driver leaves four things to wish for: it shields its sends, so a client that never reads keeps the
server from ending; it waits for the keep-alive timeout after a client has left; it closes over a body it did not read,
so that the reset takes the answer away from the client; and it speaks HTTP/2 and WebSocket to whoever asks.
"""

from __future__ import annotations

import math
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from trio_compute.telemetry.logging import get_logger

RECEIVE_BYTES = 64 * 1024
SEND_PIECE_BYTES = 256 * 1024

log = get_logger("http")


class HttpConfig(Config):
    """Hold hypercorn's settings, with no banner and no log of its own, and the time limits of a connection."""

    include_server_header = False
    accesslog = None
    errorlog = None

    def __init__(self, *, keep_alive_seconds: float, send_piece_seconds: float, linger_seconds: float) -> None:
        super().__init__()
        self.keep_alive_timeout = keep_alive_seconds
        self.send_piece_seconds = send_piece_seconds
        self.linger_seconds = linger_seconds


class _Http1(H11Protocol):
    """Speak HTTP/1.1 and nothing else (contract 03 §1)."""

    _unsent: bytes = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Take no offer of HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        if (refusal := _refusal(request)) is not None:
            # Without a stream, what follows is not read as another request, and the connection ends.
            await self._send_error_response(refusal)
            await self.send(Closed())
            return
        kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(kept) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=kept, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _send_h11_event(self, event: Any) -> None:
        """Send an event, the head of an answer together with what follows it: one write to the socket, not two."""
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        self._unsent += data or b""
        if not isinstance(event, h11.Response):
            await self._flush()

    async def stream_send(self, event: StreamEvent) -> None:
        """Do what the exchange asks for; nothing stays behind when it is over."""
        if isinstance(event, StreamClosed):
            await self._flush()
        await super().stream_send(event)

    async def _flush(self) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent:
            await self.send(RawData(unsent))

    @property
    def has_unread_body(self) -> bool:
        """Tell whether the client may still be sending what nobody is going to read."""
        return self.connection.their_state in {h11.SEND_BODY, h11.ERROR}


def _refusal(request: h11.Request) -> int | None:
    """Return the status of a request whose end others may see elsewhere than we do (RFC 9112 §6.1), or None.

    Whoever stands before us and reads the other length would pass a second request through inside the first.
    """
    if not request.http_version.startswith(b"1."):
        return 505
    names = {name for name, _ in request.headers}
    is_chunked = b"transfer-encoding" in names
    is_ambiguous = is_chunked and (b"content-length" in names or request.http_version == b"1.0")
    return 400 if is_ambiguous else None


class Connection:
    """Be one connection, from its first byte to the last one that either side cares about."""

    def __init__(self, app: AppWrapper, config: HttpConfig, context: WorkerContext, stream: trio.SocketStream) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._tasks = TaskGroup()
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._awaiting_drain = trio.CancelScope()
        self._is_idle = True
        self._is_discarding = False
        self._client_left = False

    async def run(self) -> None:
        """Answer requests until one side has had enough."""
        sock = self._stream.socket
        try:
            client, server = (
                parse_socket_addr(sock.family, address) for address in (sock.getpeername(), sock.getsockname())
            )
        except OSError:
            return
        async with self._tasks:
            self._protocol = _Http1(
                self._app,
                self._config,
                self._context,
                self._tasks,
                ConnectionState({}),
                ssl=False,
                client=client,
                server=server,
                send=self._obey,
            )
            self._tasks.spawn(self._end_when_drained)
            self._mind_idle_time(is_idle=True)
            await self._read()

    async def _read(self) -> None:
        with self._reading:
            while True:
                try:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                if not self._is_discarding:
                    await self._protocol.handle(RawData(bytes(data)))
                if not data:
                    break
        self._client_left = True
        self._awaiting_drain.cancel()
        await self._protocol.handle(Closed())

    async def _obey(self, event: Event) -> None:
        """Do what the protocol asks for: send bytes, close, or mind the idle time."""
        match event:
            case RawData(data=data):
                await self._send_bytes(data)
            case Closed():
                await self._end()
            case Updated(idle=is_idle):
                self._mind_idle_time(is_idle=is_idle)

    async def _send_bytes(self, data: bytes) -> None:
        """Send in pieces, each with a time limit; a cancelled or stalled send ends the connection."""
        view = memoryview(data)
        try:
            async with self._sending:
                for start in range(0, len(view), SEND_PIECE_BYTES):
                    with trio.CancelScope(deadline=trio.current_time() + self._config.send_piece_seconds) as patience:
                        await self._stream.send_all(view[start : start + SEND_PIECE_BYTES])
                    if patience.cancelled_caught:
                        await self._give_up()
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._protocol.handle(Closed())
        except trio.Cancelled:
            # Half an answer is out, so the connection is of no use to anybody.
            await trio.aclose_forcefully(self._stream)
            raise

    async def _give_up(self) -> None:
        log.warning("client does not read its answer")
        await trio.aclose_forcefully(self._stream)
        await self._protocol.handle(Closed())

    async def _end(self) -> None:
        if self._protocol.has_unread_body and not self._client_left:
            await self._stop_sending()
        else:
            await self._stream.aclose()
        await self._protocol.handle(Closed())

    async def _stop_sending(self) -> None:
        """Read on for a while: closing over unread bytes would reset the answer away (RFC 9112 §9.6)."""
        self._is_discarding = True
        self._reading.deadline = trio.current_time() + self._config.linger_seconds
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self._stream.aclose()

    def _mind_idle_time(self, *, is_idle: bool) -> None:
        """Between requests, end the reading after the keep-alive time; a deadline costs less than a task each time."""
        self._is_idle = is_idle
        if self._is_discarding:
            return
        self._reading.deadline = trio.current_time() + self._config.keep_alive_timeout if is_idle else math.inf
        if is_idle and self._context.terminated.is_set():
            self._reading.cancel()

    async def _end_when_drained(self) -> None:
        with self._awaiting_drain:
            await self._context.terminated.wait()
            if self._is_idle:
                self._reading.cancel()
