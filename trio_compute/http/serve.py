"""Two HTTP servers on sockets that are bound already: hypercorn's protocol, our own accepting and ending."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from trio_compute.http.exchange import App
from trio_compute.telemetry.logging import get_logger

SEND_PIECE_BYTES = 256 * 1024
SEND_PIECE_TIMEOUT_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 60.0

log = get_logger("http")


class Connection(TCPServer):
    """Be one connection whose sends can be cancelled and do not wait for ever for a client that never reads."""

    async def protocol_send(self, event: Event) -> None:
        """Send as hypercorn does, but let a cancelled or stalled send end the connection instead of shielding it."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        view = memoryview(event.data)
        try:
            async with self.send_lock:
                for start in range(0, len(view), SEND_PIECE_BYTES):
                    with trio.fail_after(SEND_PIECE_TIMEOUT_SECONDS):
                        await self.stream.send_all(view[start : start + SEND_PIECE_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._forget()
        except trio.TooSlowError:
            log.warning("client does not read its answer")
            await trio.aclose_forcefully(self.stream)
            await self._forget()
        except trio.Cancelled:
            # Half an answer is out, so the connection is of no use to anybody.
            await trio.aclose_forcefully(self.stream)
            raise

    async def _forget(self) -> None:
        await self.protocol.handle(Closed())


def http_config(keep_alive_seconds: float) -> Config:
    """Return hypercorn's settings: no banner, no log of its own."""
    config = Config()
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    config.keep_alive_timeout = keep_alive_seconds  # type: ignore[assignment]  # any number will do
    return config


async def serve_app(
    app: App,
    sockets: list[socket.socket],
    *,
    draining: Callable[[], Awaitable[None]],
    drain_seconds: float,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `draining` returns; then accept nothing more and give answers in flight a limited time."""
    config = http_config(keep_alive_seconds)
    context = WorkerContext(None)
    wrapped = ASGIWrapper(app)  # type: ignore[arg-type]  # our plain ASGI types are hypercorn's in other words

    async def handle(stream: trio.SocketStream) -> None:
        # hypercorn names the type of its TLS streams; plain ones are what it tells apart by the missing handshake.
        connection = Connection(wrapped, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001  (one bad connection must not take the server down)
            log.error("connection failed", error=repr(error))

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
            accepting.start_soon(partial(trio.serve_listeners, handle, listeners, handler_nursery=connections))
            task_status.started()
            await draining()
            accepting.cancel_scope.cancel()
        for listener in listeners:
            await listener.aclose()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + drain_seconds
