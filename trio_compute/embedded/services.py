"""The embedded services of a world, on free loopback ports."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import trio

from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.http_services import control_plane, endpoint_storage
from trio_compute.embedded.wire import HandleQuery, serve_session, token_login
from trio_compute.embedded.world import World
from trio_compute.http.exchange import App
from trio_compute.http.serve import serve_app
from trio_compute.model.ids import shard_index

Answer = Callable[[str], dict[str, Any] | None]


@asynccontextmanager
async def open_services(
    world: World, *, shards: int = 0, protocol: str = "libpq", answer: Answer = lambda _compute_id: None
) -> AsyncIterator[Addresses]:
    """Run the embedded services for as long as the block runs.

    `shards` is as the spec's `shard_count`: with 0 one pageserver serves the whole tenant, otherwise each shard has a
    pageserver of its own. `protocol` is what the pageservers speak, `libpq` or `grpc`.
    """
    objects = world.directory / "objects"
    indexes = [shard_index(number, shards) for number in range(max(1, shards))]
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        if protocol == "grpc":
            pageservers = await _open_grpc_pageservers(stack, world, indexes)
        else:
            pageservers = [await _serve_pageserver(nursery, world, index) for index in indexes]
        safekeepers = [
            await _serve_wire(nursery, world, partial(world.safekeepers.handle, member))
            for member in world.safekeepers.members
        ]
        yield Addresses(
            pageservers=dict(zip(indexes, pageservers, strict=True)),
            protocol=protocol,
            safekeepers=safekeepers,
            control_plane="http://" + await _serve_http(nursery, control_plane(answer, world.control_plane_token)),
            endpoint_storage=await _serve_http(nursery, endpoint_storage(objects, world.issuer, world.object_faults)),
        )
        nursery.cancel_scope.cancel()


async def _serve_pageserver(nursery: trio.Nursery, world: World, index: str) -> str:
    pageserver = world.pageserver
    handle = partial(pageserver.handle, shard=index)
    return "postgresql://no_user@" + await _serve_wire(nursery, world, handle, refuses=pageserver.refuses_connection)


async def _open_grpc_pageservers(stack: AsyncExitStack, world: World, indexes: list[str]) -> list[str]:
    # HTTP/2 is nothing that a world without gRPC should wait for.
    from trio_compute.embedded.grpc_pageserver import GrpcPageserver, faults_like, open_grpc_pageserver

    urls = []
    for index in indexes:
        pageserver = GrpcPageserver(world.served, world.issuer, shard=index)
        pageserver.faults = faults_like(world.pageserver.faults)
        pageserver.leases = world.pageserver.leases
        pageserver.wait_lsn_seconds = world.pageserver.wait_lsn_seconds
        urls.append(await stack.enter_async_context(open_grpc_pageserver(pageserver)))
    return urls


async def _serve_wire(
    nursery: trio.Nursery, world: World, handle: HandleQuery, refuses: Callable[[], bool] = lambda: False
) -> str:
    async def session(stream: trio.SocketStream) -> None:
        if refuses():
            await trio.aclose_forcefully(stream)
        else:
            await serve_session(stream, authenticate=token_login(world.issuer), handle_query=handle)

    listeners = await nursery.start(partial(trio.serve_tcp, session, 0, host="127.0.0.1"))
    return f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def _serve_http(nursery: trio.Nursery, app: App) -> str:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    sock.setblocking(False)
    await nursery.start(partial(serve_app, app, [sock], draining=trio.sleep_forever, drain_seconds=0.0))
    return f"127.0.0.1:{sock.getsockname()[1]}"
