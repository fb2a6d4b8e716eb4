"""Metrics that Postgres itself serves, over HTTP on a socket in PGDATA (contract 03 §5.5, 10 §7, A-24)."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_compute.errors import PostgresError

if TYPE_CHECKING:
    import h11

SOCKET_NAME = "neon-communicator.socket"
PATH = "/autoscaling_metrics"
PATIENCE_SECONDS = 5.0
LONGEST_PATH_BYTES = 99
READ_BYTES = 64 * 1024


class PostgresMetrics:
    """Hold the answer whose headers have come; whoever iterates reads the body, `aclose` hangs up."""

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection, response: h11.Response) -> None:
        self._stream = stream
        self._connection = connection
        headers = {name.lower(): value for name, value in response.headers}
        self.status = response.status_code
        self.content_type = headers.get(b"content-type", b"application/octet-stream").decode("latin-1")

    def __aiter__(self) -> PostgresMetrics:
        """Return the iterator over the body, itself."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next of the body; raise PostgresError if it breaks off."""
        import h11

        event = await _next_event(self._connection, self._stream)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Hang up."""
        await trio.aclose_forcefully(self._stream)


async def fetch_metrics(pgdata: Path, *, patience_seconds: float = PATIENCE_SECONDS) -> PostgresMetrics:
    """Ask Postgres for its metrics and return the answer once its headers are there; raise PostgresError."""
    stream: trio.SocketStream | None = None
    try:
        with trio.fail_after(patience_seconds):
            stream = await _connect(pgdata / SOCKET_NAME)
            return await _ask(stream)
    except BaseException as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError):
            what = "connecting to communicator control socket" if stream is None else _FETCHING
            raise PostgresError(f"{what}: no answer within {patience_seconds:g} s") from None
        raise


_FETCHING = "fetching metrics from Postgres metrics service"


async def _connect(path: Path) -> trio.SocketStream:
    try:
        with _short(path) as name:
            return await trio.open_unix_socket(name)
    except OSError as error:
        raise PostgresError("connecting to communicator control socket") from error


@contextmanager
def _short(path: Path) -> Iterator[Path]:
    """Name a socket in a way that the kernel takes; a link that is made for it is gone after the block."""
    if len(os.fsencode(path)) <= LONGEST_PATH_BYTES:
        yield path
        return
    link = Path(tempfile.gettempdir()) / f"compute_ctl.short-socket.{os.getpid()}.{secrets.token_hex(8)}"
    link.symlink_to(path)
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


async def _ask(stream: trio.SocketStream) -> PostgresMetrics:
    import h11

    connection = h11.Connection(our_role=h11.CLIENT)
    request = h11.Request(method="GET", target=PATH, headers=[("Host", "localhost"), ("Connection", "close")])
    data = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError as error:
        raise PostgresError(_FETCHING) from error
    while True:
        event = await _next_event(connection, stream)
        if isinstance(event, h11.Response):
            return PostgresMetrics(stream, connection, event)


async def _next_event(connection: h11.Connection, stream: trio.abc.Stream) -> h11.Event:
    import h11

    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
            elif isinstance(event, h11.Event) and not isinstance(event, h11.ConnectionClosed):
                return event
            else:
                raise PostgresError(f"{_FETCHING}: the connection was closed")
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
        raise PostgresError(_FETCHING) from error
