"""Speak gRPC with pageservers: grpcio moves the bytes, its calls are waited for in worker threads (contract 07 §5).

Only a spec that prefers gRPC causes grpcio to be imported. It has no type stubs; its objects are `Any` in this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from trio_compute.deadlines import Deadlines
from trio_compute.errors import SpecError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.addresses import grpc_address
from trio_compute.model.ids import Lsn, shard_index
from trio_compute.model.parsed import ParsedSpec, shard_zero_url
from trio_compute.plan.lease import LeaseTarget, LeaseTerms
from trio_compute.storage import page_api
from trio_compute.storage.interruptible import Inflow, run_interruptible
from trio_compute.storage.pageserver import Received, receive_basebackup
from trio_compute.storage.texts import brief
from trio_compute.telemetry.redaction import REDACTED
from trio_compute.telemetry.spans import Recorder

MAX_MESSAGE_BYTES = 8 * 1024 * 1024  # a chunk may have 4 MiB; its frame comes on top
IDENTITY_ONLY = 1  # bit set of the compressions that we accept: what is sent is gzip already
FIRST_LOOK_SECONDS = 0.001
LAST_LOOK_SECONDS = 0.05
CANNOT_CONNECT = "cannot connect to pageserver"

Metadata = tuple[tuple[str, str], ...]
T = TypeVar("T")


def load_grpc() -> Any:
    """Import grpcio; blocking, some 25 ms the first time."""
    import grpc  # type: ignore[import-untyped]

    return grpc


def channel_target(url: str) -> str:
    """Return gRPC's name for the peer of a `grpc://host:port` URL; raise SpecError, which quotes no user part."""
    host, port = grpc_address(url)
    return f"dns:///[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"


def call_metadata(tenant_id: str, timeline_id: str, shard: str, token: str | None) -> Metadata:
    """Return what every call carries; raise SpecError for a token that cannot be a header."""
    metadata = (("neon-tenant-id", tenant_id), ("neon-timeline-id", timeline_id), ("neon-shard-id", shard))
    if token is None:
        return metadata
    if not (token.isascii() and token.isprintable()):
        raise SpecError("storage_auth_token has characters that gRPC cannot send")
    return (*metadata, ("authorization", f"Bearer {token}"))


async def fetch_over_grpc(
    parsed: ParsedSpec, pgdata: Path, lsn: Lsn, *, run_as: RunAs, spans: Recorder, deadlines: Deadlines
) -> Received:
    """Unpack one basebackup into PGDATA; raise StorageError or HostError when anything about it is not right."""
    token = parsed.spec.storage_auth_token
    try:
        target = channel_target(shard_zero_url(parsed.pageservers))
        shard = shard_index(0, parsed.pageservers.shard_count)
        metadata = call_metadata(parsed.tenant_id, parsed.timeline_id, shard, token)
    except SpecError as error:
        raise SpecError(f"pageserver connection: {error}") from None
    request = page_api.BaseBackupRequest(lsn=lsn, replica=not parsed.is_primary)
    async with _open_channel(target, deadlines.pageserver_connect) as channel:
        connecting = spans.now()
        connected = await _connect(channel, deadlines.pageserver_connect)
        if connected:
            spans.add("basebackup.connect", start_seconds=connecting)
        call = channel.unary_stream(_path(page_api.GET_BASE_BACKUP))(request.encode(), metadata=metadata)
        # The messages end only with status OK; any other is raised (S-07).
        chunks, inflow = map(page_api.decode_chunk, call), Inflow()
        receive = partial(receive_basebackup, chunks, inflow, pgdata, run_as)
        work = partial(_translating, receive, token, failed="pageserver" if connected else CANNOT_CONNECT)
        with spans.measure("basebackup.unpack"):
            return await run_interruptible(work, call.cancel, inflow=inflow, idle_seconds=deadlines.pageserver_idle)


async def lease_over_grpc(
    terms: LeaseTerms, target: LeaseTarget, *, connect_seconds: float, answer_seconds: float
) -> float | None:
    """Ask one pageserver; return the lease's end in Unix seconds, None if refused; raise SpecError, StorageError."""
    metadata = call_metadata(terms.tenant_id, terms.timeline_id, target.shard, terms.token)
    async with _open_channel(channel_target(target.url), connect_seconds) as channel:
        call = channel.unary_unary(_path(page_api.LEASE_LSN)).future(
            page_api.encode_lease_request(terms.lsn), metadata=metadata, timeout=connect_seconds + answer_seconds
        )
        return await run_interruptible(
            partial(_translating, partial(_expiry_of, call), terms.token),
            call.cancel,
            inflow=Inflow(),
            idle_seconds=connect_seconds + answer_seconds + 1,
        )


@asynccontextmanager
async def _open_channel(target: str, connect_seconds: float) -> AsyncIterator[Any]:
    channel = await trio.to_thread.run_sync(_make_channel, target, connect_seconds)
    try:
        yield channel
    finally:
        channel.close()


def _make_channel(target: str, connect_seconds: float) -> Any:
    grpc = load_grpc()
    options = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.compression_enabled_algorithms_bitset": IDENTITY_ONLY,
        # How long an attempt to connect may take, HTTP/2's greeting included.
        "grpc.min_reconnect_backoff_ms": max(1, round(connect_seconds * 1000)),
        # A proxy variable of the host must not see the token; what is closed must not live on in a shared pool.
        "grpc.enable_http_proxy": 0,
        "grpc.use_local_subchannel_pool": 1,
    }
    return grpc.insecure_channel(target, options=list(options.items()), compression=grpc.Compression.NoCompression)


async def _connect(channel: Any, seconds: float) -> bool:
    """Tell whether a connection came about; after a failed attempt, the call that follows tells why (S-10).

    The state is looked at, not subscribed to: a subscription's thread may outlive the channel and die noisily.
    """
    states = load_grpc().ChannelConnectivity
    look = FIRST_LOOK_SECONDS
    with trio.move_on_after(seconds):
        while True:
            state = channel._channel.check_connectivity_state(True)
            if state in {states.READY.value[0], states.TRANSIENT_FAILURE.value[0]}:
                return bool(state == states.READY.value[0])
            await trio.sleep(look)
            look = min(look * 1.5, LAST_LOOK_SECONDS)
    raise StorageError(f"{CANNOT_CONNECT}: no connection within {seconds:g} s")


def _expiry_of(call: Any) -> float | None:
    grpc = load_grpc()
    try:
        return page_api.decode_lease_response(call.result())
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return None
        raise


def _translating(work: Callable[[], T], token: str | None, *, failed: str = "pageserver") -> T:
    """Do blocking work with a call; raise StorageError in place of what gRPC raises, without the token."""
    grpc = load_grpc()
    try:
        return work()
    except grpc.RpcError as error:
        text = f"{error.code().name}: {error.details()}"
        raise StorageError(f"{failed}: {brief(text.replace(token, REDACTED) if token else text)}") from None
    except grpc.FutureCancelledError:
        raise StorageError("pageserver: the request was cancelled") from None
    except page_api.MalformedMessage as error:
        raise StorageError(f"pageserver: unusable answer: {error}") from None


def _path(method: str) -> str:
    return f"/{page_api.SERVICE}/{method}"
