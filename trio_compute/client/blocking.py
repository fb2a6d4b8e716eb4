"""The client that blocks, for scripts and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from trio_compute.client import calls
from trio_compute.client.core import DEFAULT_URL, Call, Peer, Reply, api_error, reply_of, translated
from trio_compute.client.events import Event, EventParser

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(call: Callable[P, Call[T]]) -> Callable[Concatenate[ComputeClient, P], T]:
    @wraps(call)
    def method(client: ComputeClient, /, *args: P.args, **options: P.kwargs) -> T:
        return client.ask(call(*args, **options))

    return method


class ComputeClient:
    """Ask a compute, and wait for the answer. To be closed, or used as a context manager."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, internal_url: str | None = None) -> None:
        self._peer = Peer(url, token=token, internal_url=internal_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if "_http" in self.__dict__:
            self._http.close()

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        return httpx.Client(trust_env=False)

    def ask(self, call: Call[T]) -> T:
        """Send any request and return what its answer says; raise ApiError, Unreachable or UnexpectedAnswer."""
        with translated(call, self._peer):
            response = self._http.request(**self._peer.request(call))
        return call.result(reply_of(response))

    @contextmanager
    def events(self, *, after: int | None = None) -> Iterator[Iterator[Event]]:
        """Follow what happens for as long as the block runs; the iterator ends when the compute does."""
        call = calls.events(after=after)
        with ExitStack() as stack:
            with translated(call, self._peer):
                response = stack.enter_context(self._http.stream(**self._peer.request(call)))
                if response.status_code != 200:
                    raise api_error(Reply(response.status_code, dict(response.headers), response.read()))
            yield _events(call, self._peer, response)

    request = _blocking(calls.request)
    status = _blocking(calls.status)
    metrics = _blocking(calls.metrics)
    metrics_json = _blocking(calls.metrics_json)
    configure = _blocking(calls.configure)
    configure_dry_run = _blocking(calls.configure_dry_run)
    terminate = _blocking(calls.terminate)
    livez = _blocking(calls.livez)
    readyz = _blocking(calls.readyz)
    startupz = _blocking(calls.startupz)
    openapi = _blocking(calls.openapi)
    check_writability = _blocking(calls.check_writability)
    database_schema = _blocking(calls.database_schema)
    dbs_and_roles = _blocking(calls.dbs_and_roles)
    insights = _blocking(calls.insights)
    hadron_liveness_probe = _blocking(calls.hadron_liveness_probe)
    autoscaling_metrics = _blocking(calls.autoscaling_metrics)
    promote = _blocking(calls.promote)
    lfc_prewarm_state = _blocking(calls.lfc_prewarm_state)
    lfc_prewarm = _blocking(calls.lfc_prewarm)
    lfc_prewarm_cancel = _blocking(calls.lfc_prewarm_cancel)
    lfc_offload_state = _blocking(calls.lfc_offload_state)
    lfc_offload = _blocking(calls.lfc_offload)
    refresh_configuration = _blocking(calls.refresh_configuration)
    spans = _blocking(calls.spans)
    failpoints = _blocking(calls.failpoints)
    extensions = _blocking(calls.extensions)
    grants = _blocking(calls.grants)
    extension_server = _blocking(calls.extension_server)


def _events(call: Call[bytes], peer: Peer, response: httpx.Response) -> Iterator[Event]:
    parser = EventParser()
    with translated(call, peer):
        for data in response.iter_raw():
            yield from parser.feed(data)
