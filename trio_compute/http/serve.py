"""Two HTTP servers on sockets that are bound already: hypercorn's protocol, our own accepting and ending."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext

from trio_compute.http.connection import Connection, HttpConfig
from trio_compute.http.exchange import App
from trio_compute.telemetry.logging import get_logger

KEEP_ALIVE_SECONDS = 60.0
SEND_PIECE_SECONDS = 30.0
LINGER_SECONDS = 2.0

log = get_logger("http")


async def serve_app(
    app: App,
    sockets: list[socket.socket],
    *,
    draining: Callable[[], Awaitable[None]],
    drain_seconds: float,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    send_piece_seconds: float = SEND_PIECE_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `draining` returns; then accept nothing more and give answers in flight a limited time."""
    config = HttpConfig(
        keep_alive_seconds=keep_alive_seconds, send_piece_seconds=send_piece_seconds, linger_seconds=LINGER_SECONDS
    )
    context = WorkerContext(None)
    wrapped = ASGIWrapper(app)  # type: ignore[arg-type]  # our plain ASGI types are hypercorn's in other words

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await Connection(wrapped, config, context, stream).run()
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
