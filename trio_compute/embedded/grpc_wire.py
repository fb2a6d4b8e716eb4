"""The server's side of gRPC, as much of it as a pageserver needs: HTTP/2 by h2, on Trio.

grpcio cannot be that server: its parser of headers takes no `:scheme` but http and https ("Error parsing ':scheme'
metadata", status INTERNAL, before any code of ours runs), and the original's client sends the scheme of its URL, grpc.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn
from urllib.parse import quote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import trio

RECEIVE_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 1024 * 1024
PREFIX = struct.Struct("!?I")

Headers = list[tuple[str, str]]


class Status(enum.IntEnum):
    """Name the statuses of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Failed(Exception):
    """End a call with a status other than OK."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class Call:
    """Be one call: what came with it, and how to answer it."""

    def __init__(self, connection: _Connection, stream_id: int, headers: Headers) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._began = False
        self.scope = trio.CancelScope()
        self.metadata = {name: value for name, value in headers if not name.startswith(":")}
        self.path = dict(headers).get(":path", "")
        self.body = bytearray()

    def fail(self, status: str, text: str) -> NoReturn:
        """End the call with a status, which may come after messages."""
        raise Failed(Status[status], text)

    def message(self) -> bytes:
        """Return the one message of the request."""
        if len(self.body) < PREFIX.size:
            self.fail("INTERNAL", "the request has no message")
        compressed, length = PREFIX.unpack_from(self.body)
        if compressed or length != len(self.body) - PREFIX.size:
            self.fail("UNIMPLEMENTED", "the request is compressed, or has more than one message")
        return bytes(self.body[PREFIX.size :])

    async def send(self, message: bytes) -> None:
        """Send one message of the answer."""
        if not self._began:
            self._began = True
            await self._connection.send_headers(self._stream_id, _HEAD)
        await self._connection.send_data(self._stream_id, PREFIX.pack(False, len(message)) + message)

    async def end(self, status: Status, text: str = "") -> None:
        """Tell how it went; without a message before, that is the whole answer."""
        trailers = [("grpc-status", str(int(status))), ("grpc-message", quote(text))]
        await self._connection.send_headers(
            self._stream_id, trailers if self._began else [*_HEAD, *trailers], end_stream=True
        )


_HEAD: Headers = [(":status", "200"), ("content-type", "application/grpc")]
Handler = Callable[[Call], Awaitable[None]]


class _Connection:
    """Hold one client's connection; calls run beside one another."""

    def __init__(self, stream: trio.SocketStream, handlers: dict[str, Handler]) -> None:
        self._stream = stream
        self._handlers = handlers
        self._calls: dict[int, Call] = {}
        self._moved = trio.Event()
        self._wanted, self._written = trio.Event(), trio.Event()
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")  # which decodes anything
        self._h2 = h2.connection.H2Connection(config)

    async def run(self) -> None:
        """Serve until the client hangs up or speaks no HTTP/2."""
        self._h2.initiate_connection()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._flush()
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                try:
                    for event in self._h2.receive_data(data):
                        self._take(event, nursery)
                except h2.exceptions.ProtocolError:
                    await self._flush()
                    break
                await self._flush()
            nursery.cancel_scope.cancel()

    def _take(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = [(str(name), str(value)) for name, value in event.headers or ()]
            self._calls[event.stream_id] = Call(self, event.stream_id, headers)
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            self._receive(event.stream_id, event.data or b"")
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id in self._calls:
            nursery.start_soon(self._answer, event.stream_id, self._calls[event.stream_id])
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in self._calls:
            self._calls[event.stream_id].scope.cancel()
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._moved.set()
            self._moved = trio.Event()

    def _receive(self, stream_id: int, data: bytes) -> None:
        call = self._calls.get(stream_id)
        if call is None:
            return
        call.body += data
        if len(call.body) > MAX_REQUEST_BYTES:
            del self._calls[stream_id]
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)

    async def _answer(self, stream_id: int, call: Call) -> None:
        try:
            with call.scope:
                await self._handle(call)
        except h2.exceptions.ProtocolError:
            pass  # the client does not want it any more: its stream or its connection is closed
        finally:
            self._calls.pop(stream_id, None)

    async def _handle(self, call: Call) -> None:
        handler = self._handlers.get(call.path)
        try:
            if handler is None:
                call.fail("UNIMPLEMENTED", "")
            await handler(call)
            await call.end(Status.OK)
        except Failed as failure:
            await call.end(failure.status, str(failure))

    async def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool = False) -> None:
        self._h2.send_headers(stream_id, headers, end_stream=end_stream)
        await self._flush()

    async def send_data(self, stream_id: int, data: bytes) -> None:
        """Send all, as fast as the client gives room for it."""
        view = memoryview(data)
        while view:
            moved, room = self._moved, self._h2.local_flow_control_window(stream_id)
            length = min(room, self._h2.max_outbound_frame_size, len(view))
            if length > 0:
                self._h2.send_data(stream_id, bytes(view[:length]))
                view = view[length:]
                await self._flush()
            else:
                await moved.wait()

    async def _flush(self) -> None:
        """Wait until the writer has been there; it sends whole frames, whoever of the calls is cancelled meanwhile."""
        written = self._written
        self._wanted.set()
        await written.wait()

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if data := self._h2.data_to_send():
                await self._stream.send_all(data)
            self._written.set()
            self._written = trio.Event()


async def _serve(stream: trio.SocketStream, handlers: dict[str, Handler]) -> None:
    try:
        async with stream:
            await _Connection(stream, handlers).run()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client hung up


@asynccontextmanager
async def open_grpc_server(service: str, handlers: Mapping[str, Handler]) -> AsyncIterator[str]:
    """Serve the methods of a service on a free loopback port while the block runs; yield `grpc://host:port`."""
    paths = {f"/{service}/{method}": handler for method, handler in handlers.items()}
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(_serve, handlers=paths), 0, host="127.0.0.1"))
        yield f"grpc://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
