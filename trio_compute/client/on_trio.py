"""The client that is awaited, for programs on Trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from trio_compute.client import calls
from trio_compute.client.core import DEFAULT_URL, Call, Peer, Reply, api_error, reply_of, translated
from trio_compute.client.events import Event, EventParser
from trio_compute.errors import RemoteError

if TYPE_CHECKING:
    import httpx
    import trio

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(call: Callable[P, Call[T]]) -> Callable[Concatenate[TrioComputeClient, P], Awaitable[T]]:
    @wraps(call)
    async def method(client: TrioComputeClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await client.ask(call(*args, **options))

    return method


class TrioComputeClient:
    """Ask a compute. To be closed, or used as an asynchronous context manager."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, internal_url: str | None = None) -> None:
        self._peer = Peer(url, token=token, internal_url=internal_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if "_http" in self.__dict__:
            await self._http.aclose()

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(trust_env=False)

    async def ask(self, call: Call[T]) -> T:
        """Send any request and return what its answer says; raise ApiError, Unreachable or UnexpectedAnswer."""
        with translated(call, self._peer):
            response = await self._http.request(**self._peer.request(call))
        return call.result(reply_of(response))

    @asynccontextmanager
    async def events(self, *, after: int | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """Follow what happens for as long as the block runs; the iterator ends when the compute does."""
        import trio

        call = calls.events(after=after)
        sending, receiving = trio.open_memory_channel[Event | RemoteError](0)
        async with AsyncExitStack() as stack:
            with translated(call, self._peer):
                response = await stack.enter_async_context(self._http.stream(**self._peer.request(call)))
                if response.status_code != 200:
                    raise api_error(Reply(response.status_code, dict(response.headers), await response.aread()))
            failure: Exception | None = None
            # A task of its own reads: cancelling it unwinds httpx's generators, which leaving a loop would not.
            async with trio.open_nursery() as nursery, receiving:
                nursery.start_soon(_read_events, call, self._peer, response, sending)
                try:
                    yield _Received(receiving)
                except Exception as error:  # noqa: BLE001  (raised again, without the group that a nursery makes of it)
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure

    request = _awaited(calls.request)
    status = _awaited(calls.status)
    metrics = _awaited(calls.metrics)
    metrics_json = _awaited(calls.metrics_json)
    configure = _awaited(calls.configure)
    configure_dry_run = _awaited(calls.configure_dry_run)
    terminate = _awaited(calls.terminate)
    livez = _awaited(calls.livez)
    readyz = _awaited(calls.readyz)
    startupz = _awaited(calls.startupz)
    openapi = _awaited(calls.openapi)
    check_writability = _awaited(calls.check_writability)
    database_schema = _awaited(calls.database_schema)
    dbs_and_roles = _awaited(calls.dbs_and_roles)
    insights = _awaited(calls.insights)
    hadron_liveness_probe = _awaited(calls.hadron_liveness_probe)
    autoscaling_metrics = _awaited(calls.autoscaling_metrics)
    promote = _awaited(calls.promote)
    lfc_prewarm_state = _awaited(calls.lfc_prewarm_state)
    lfc_prewarm = _awaited(calls.lfc_prewarm)
    lfc_prewarm_cancel = _awaited(calls.lfc_prewarm_cancel)
    lfc_offload_state = _awaited(calls.lfc_offload_state)
    lfc_offload = _awaited(calls.lfc_offload)
    refresh_configuration = _awaited(calls.refresh_configuration)
    spans = _awaited(calls.spans)
    failpoints = _awaited(calls.failpoints)
    extensions = _awaited(calls.extensions)
    grants = _awaited(calls.grants)
    extension_server = _awaited(calls.extension_server)


async def _read_events(
    call: Call[bytes], peer: Peer, response: httpx.Response, sending: trio.MemorySendChannel[Event | RemoteError]
) -> None:
    parser = EventParser()
    async with sending:
        try:
            with translated(call, peer):
                async for data in response.aiter_raw():
                    for event in parser.feed(data):
                        await sending.send(event)
        except RemoteError as error:
            await sending.send(error)


class _Received:
    """Be the events as they come; unlike a generator, it may be left at any time."""

    def __init__(self, receiving: trio.MemoryReceiveChannel[Event | RemoteError]) -> None:
        self._receiving = receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        told = await anext(self._receiving)
        if isinstance(told, RemoteError):
            raise told
        return told
