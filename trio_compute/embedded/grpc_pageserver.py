"""An embedded pageserver that speaks gRPC, with faults on demand (contract 07 §5, §10.2)."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import trio
from msgspec import Struct

from trio_compute.embedded.pageserver import Faults, Leases, has_basebackups
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.tokens import Issuer
from trio_compute.errors import StorageError
from trio_compute.model.ids import INVALID_LSN, UNSHARDED, is_hex_id
from trio_compute.storage import page_api
from trio_compute.storage.grpc_pageserver import load_grpc

CHUNK_BYTES = 256 * 1024
WORKERS = 8
_SHARD = re.compile(r"[0-9a-fA-F]{4}")


class GrpcFaults(Struct):
    """Hold what shall go wrong; tests change it between requests. A status is gRPC's name of it, such as INTERNAL."""

    refusals: int = 0
    chunk_bytes: int = CHUNK_BYTES
    status: str | None = None
    status_text: str = "stand-in fault"
    status_after_chunks: int = 0  # before any data; a number beyond the last chunk: after all of it
    delay_seconds: float = 0.0
    stall_after_chunks: int | None = None
    end_after_chunks: int | None = None
    corrupt_chunk: int | None = None
    malformed: bool = False
    lease_seconds: float = 600.0
    lease_status: str | None = None


def faults_like(faults: Faults) -> GrpcFaults:
    """Return what goes wrong here where a libpq pageserver has delays, refusals, cuts and corruption."""

    def chunk(byte: int | None) -> int | None:
        return None if byte is None else byte // CHUNK_BYTES

    return GrpcFaults(
        refusals=faults.fail_connections,
        delay_seconds=faults.delay_before_copy_seconds,
        end_after_chunks=chunk(faults.cut_at_byte),
        corrupt_chunk=chunk(faults.corrupt_at_byte),
    )


class Request(Struct, frozen=True):
    """Note one call: its method, its metadata and its message."""

    method: str
    metadata: dict[str, str]
    message: bytes


class GrpcPageserver:
    """Serve the snapshots of some timelines; with an issuer, only to who brings a token of it.

    `shard` is which shard of its tenant it has, such as `0102`; None is all that it is asked for.
    """

    def __init__(
        self,
        timelines: Mapping[tuple[str, str], Snapshots],
        issuer: Issuer | None = None,
        *,
        shard: str | None = None,
    ) -> None:
        self._timelines = timelines
        self._issuer = issuer
        self._shard = shard
        self.leases = Leases()
        self.faults = GrpcFaults()
        self.requests: list[Request] = []

    def get_base_backup(self, message: bytes, context: Any) -> Iterator[bytes]:
        """Answer GetBaseBackup."""
        call = _Call(context)
        snapshots = self._admit(call, page_api.GET_BASE_BACKUP, message)
        request = _decoded(call, page_api.BaseBackupRequest.decode, message)
        if request.compression != page_api.Compression.GZIP or request.full:
            call.fail("INVALID_ARGUMENT", "only gzip basebackups are kept here")
        try:
            path = snapshots.at(None if request.lsn == INVALID_LSN else request.lsn)
        except StorageError as error:
            call.fail("INVALID_ARGUMENT", str(error))
        call.wait(self.faults.delay_seconds)
        yield from self._chunks(call, path)

    def _chunks(self, call: _Call, path: Path) -> Iterator[bytes]:
        faults = self.faults
        with path.open("rb") as file:
            sent = 0
            while data := file.read(faults.chunk_bytes):
                if sent == faults.status_after_chunks and faults.status is not None:
                    call.fail(faults.status, faults.status_text)
                if sent == faults.end_after_chunks:
                    return
                if sent == faults.stall_after_chunks:
                    call.wait(None)
                yield self._encoded(data, corrupt=sent == faults.corrupt_chunk)
                sent += 1
        if faults.status is not None:
            call.fail(faults.status, faults.status_text)

    def _encoded(self, data: bytes, *, corrupt: bool) -> bytes:
        if self.faults.malformed:
            return b"\x0a\xff"
        half = len(data) // 2
        return page_api.encode_chunk(data[:half] + bytes([data[half] ^ 0xFF]) + data[half + 1 :] if corrupt else data)

    def lease_lsn(self, message: bytes, context: Any) -> bytes:
        """Answer LeaseLsn."""
        call = _Call(context)
        snapshots = self._admit(call, page_api.LEASE_LSN, message)
        lsn = _decoded(call, page_api.decode_lease_request, message)
        if lsn == INVALID_LSN:
            call.fail("INVALID_ARGUMENT", "missing LSN")
        call.wait(self.faults.delay_seconds)
        if self.faults.lease_status is not None:
            call.fail(self.faults.lease_status, self.faults.status_text)
        tenant, timeline, shard = call.identity
        key = (tenant if shard == UNSHARDED else f"{tenant}-{shard}", timeline, lsn)
        expires_at = self.leases.grant(snapshots, key, self.faults.lease_seconds)
        if expires_at is None:
            call.fail("FAILED_PRECONDITION", f"{lsn} is below the GC cutoff")
        return b"" if self.faults.malformed else page_api.encode_lease_response(expires_at)

    def _admit(self, call: _Call, method: str, message: bytes) -> Snapshots:
        """Note a request, check who sent it and return the snapshots of its timeline."""
        self.requests.append(Request(method, call.metadata, message))
        tenant, timeline, shard = call.identity
        if not (is_hex_id(tenant) and is_hex_id(timeline) and _SHARD.fullmatch(shard)):
            call.fail("INVALID_ARGUMENT", "missing or invalid metadata")
        self._authenticate(call, tenant)
        if self.faults.refusals > 0:
            self.faults.refusals -= 1
            call.fail("UNAVAILABLE", self.faults.status_text)
        if self._shard not in {None, shard}:
            call.fail("NOT_FOUND", f"this is shard {self._shard}")
        if method == page_api.GET_BASE_BACKUP and not has_basebackups(shard):
            call.fail("INVALID_ARGUMENT", f"shard {shard} has no basebackups, shard zero has")
        snapshots = self._timelines.get((tenant, timeline))
        if snapshots is None:
            call.fail("NOT_FOUND", "tenant or timeline not found")
        return snapshots

    def _authenticate(self, call: _Call, tenant: str) -> None:
        if self._issuer is None:
            return
        header = call.metadata.get("authorization")
        if header is None:
            call.fail("UNAUTHENTICATED", "no authorization header")
        try:
            claims = self._issuer.claims(header.removeprefix("Bearer ").strip())
        except ValueError:
            call.fail("INVALID_ARGUMENT", "invalid JWT token")
        if claims.get("scope") != "pageserverapi" and claims.get("tenant_id") != tenant:
            call.fail("PERMISSION_DENIED", "tenant id mismatch")


class _Call:
    """Be one call: what came with it, and how to end or delay it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._ended = threading.Event()
        if not context.add_callback(self._ended.set):
            self._ended.set()
        self.metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}

    @property
    def identity(self) -> tuple[str, str, str]:
        """Return tenant, timeline and shard, unchecked."""
        tenant, timeline, shard = (self.metadata.get(f"neon-{name}-id", "") for name in ("tenant", "timeline", "shard"))
        return tenant.lower(), timeline.lower(), shard.lower()

    def fail(self, status: str, text: str) -> NoReturn:
        self._context.abort(load_grpc().StatusCode[status], text)
        raise AssertionError("abort raises")

    def wait(self, seconds: float | None) -> None:
        """Wait some time, or for ever, but no longer than the client does."""
        self._ended.wait(seconds)


def _decoded(call: _Call, decode: Any, message: bytes) -> Any:
    try:
        return decode(message)
    except page_api.MalformedMessage as error:
        call.fail("INVALID_ARGUMENT", str(error))


@asynccontextmanager
async def open_grpc_pageserver(pageserver: GrpcPageserver) -> AsyncIterator[str]:
    """Serve on a free loopback port for as long as the block runs; yield the URL, `grpc://host:port`."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="grpc-pageserver")
    server, port = await trio.to_thread.run_sync(_start, pageserver, pool)
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_stop, server, pool)


def _start(pageserver: GrpcPageserver, pool: ThreadPoolExecutor) -> tuple[Any, int]:
    grpc = load_grpc()
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    handlers = {
        page_api.GET_BASE_BACKUP: grpc.unary_stream_rpc_method_handler(pageserver.get_base_backup),
        page_api.LEASE_LSN: grpc.unary_unary_rpc_method_handler(pageserver.lease_lsn),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(page_api.SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def _stop(server: Any, pool: ThreadPoolExecutor) -> None:
    """Cancel what is in flight and wait until no thread of ours is left."""
    server.stop(None).wait()
    pool.shutdown(wait=True)
