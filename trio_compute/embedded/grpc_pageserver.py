"""An embedded pageserver that speaks gRPC, with faults on demand (contract 07 §5, §10.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio
from msgspec import Struct

from trio_compute.embedded.grpc_wire import Call, open_grpc_server
from trio_compute.embedded.page_commands import ID_DIGITS, hex_trouble
from trio_compute.embedded.pageserver import (
    WAIT_LSN_SECONDS,
    Faults,
    Leases,
    collected,
    has_basebackups,
    late,
    reaches,
)
from trio_compute.embedded.snapshots import Snapshots
from trio_compute.embedded.tokens import Issuer, Service
from trio_compute.model.ids import INVALID_LSN, UNSHARDED, Lsn
from trio_compute.storage import page_api

CHUNK_BYTES = 256 * 1024
SHARD_DIGITS = 4
IDENTITY = ("neon-tenant-id", "neon-timeline-id", "neon-shard-id")
TOO_LATE = "tried to request an lsn lease for an lsn below the latest gc cutoff"

T = TypeVar("T")


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
        self.wait_lsn_seconds = WAIT_LSN_SECONDS

    async def get_base_backup(self, call: Call) -> None:
        """Answer GetBaseBackup."""
        snapshots = self._admit(call, page_api.GET_BASE_BACKUP)
        request = _decoded(call, page_api.BaseBackupRequest.decode)
        if request.compression not in {page_api.Compression.NONE, page_api.Compression.GZIP}:
            name = "Unknown" if request.compression == page_api.Compression.UNKNOWN else str(request.compression)
            call.fail("INVALID_ARGUMENT", f"field 'compression' has invalid value '{name}'")
        lsn = None if request.lsn == INVALID_LSN else request.lsn
        if lsn is not None:
            await self._await_lsn(call, snapshots, lsn)
        await trio.sleep(self.faults.delay_seconds)
        await self._send(call, snapshots.serve(lsn, gzip=request.compression == page_api.Compression.GZIP))

    async def _await_lsn(self, call: Call, snapshots: Snapshots, lsn: Lsn) -> None:
        if not await reaches(snapshots, lsn, self.wait_lsn_seconds):
            call.fail("INTERNAL", late(snapshots, lsn))
        if lsn < snapshots.lsns()[0]:
            call.fail("INVALID_ARGUMENT", f"invalid basebackup LSN: {collected(snapshots, lsn)}")

    async def _send(self, call: Call, pieces: Iterator[bytes]) -> None:
        faults, sent = self.faults, 0
        chunks = in_chunks(pieces, faults.chunk_bytes)
        while data := await trio.to_thread.run_sync(next, chunks, b""):
            if sent == faults.status_after_chunks and faults.status is not None:
                call.fail(faults.status, faults.status_text)
            if sent == faults.end_after_chunks:
                return
            if sent == faults.stall_after_chunks:
                await trio.sleep_forever()
            await call.send(self._encoded(data, corrupt=sent == faults.corrupt_chunk))
            sent += 1
        if faults.status is not None:
            call.fail(faults.status, faults.status_text)

    def _encoded(self, data: bytes, *, corrupt: bool) -> bytes:
        if self.faults.malformed:
            return b"\x0a\xff"
        half = len(data) // 2
        return page_api.encode_chunk(data[:half] + bytes([data[half] ^ 0xFF]) + data[half + 1 :] if corrupt else data)

    async def lease_lsn(self, call: Call) -> None:
        """Answer LeaseLsn."""
        snapshots = self._admit(call, page_api.LEASE_LSN)
        lsn = _decoded(call, page_api.decode_lease_request)
        if lsn == INVALID_LSN:
            call.fail("INVALID_ARGUMENT", "required field 'lsn' is missing")
        await trio.sleep(self.faults.delay_seconds)
        if self.faults.lease_status is not None:
            call.fail(self.faults.lease_status, self.faults.status_text)
        tenant, timeline, shard = (call.metadata[name].lower() for name in IDENTITY)
        key = (tenant if shard == UNSHARDED else f"{tenant}-{shard}", timeline, lsn)
        expires_at = self.leases.grant(snapshots, key, self.faults.lease_seconds)
        if expires_at is None:
            call.fail("FAILED_PRECONDITION", f"{TOO_LATE}. requested at {lsn} gc cutoff {snapshots.lsns()[0]}")
        await call.send(b"" if self.faults.malformed else page_api.encode_lease_response(expires_at))

    def _admit(self, call: Call, method: str) -> Snapshots:
        """Note a request, check who sent it and return the snapshots of its timeline."""
        self.requests.append(Request(method, call.metadata, call.message()))
        tenant, timeline, shard = (_identity(call, name) for name in IDENTITY)
        self._authenticate(call, tenant)
        if self.faults.refusals > 0:
            self.faults.refusals -= 1
            call.fail("UNAVAILABLE", self.faults.status_text)
        if method == page_api.GET_BASE_BACKUP and not has_basebackups(shard):
            call.fail("INVALID_ARGUMENT", f"request only valid on shard zero (requested shard {shard})")
        if self._shard not in {None, shard} or tenant not in {known for known, _ in self._timelines}:
            call.fail("NOT_FOUND", f"Tenant {tenant if shard == UNSHARDED else f'{tenant}-{shard}'} not found")
        snapshots = self._timelines.get((tenant, timeline))
        if snapshots is None:
            call.fail("NOT_FOUND", f"Timeline {tenant}/{timeline} was not found")
        return snapshots

    def _authenticate(self, call: Call, tenant: str) -> None:
        if self._issuer is None:
            return
        header = call.metadata.get("authorization")
        if header is None:
            call.fail("UNAUTHENTICATED", "no authorization header")
        if not header.startswith("Bearer "):
            call.fail("INVALID_ARGUMENT", "invalid authorization header")
        try:
            claims = self._issuer.storage_claims(header.removeprefix("Bearer ").strip())
        except ValueError as error:
            call.fail("INVALID_ARGUMENT", f"invalid JWT token: {error}")
        refusal = claims.refusal(tenant, Service.PAGESERVER)
        if refusal is not None:
            call.fail("PERMISSION_DENIED", refusal)


def _identity(call: Call, name: str) -> str:
    """Return a part of what a call is about, in lower case."""
    value = call.metadata.get(name)
    if value is None:
        call.fail("INVALID_ARGUMENT", f"missing {name}")
    if hex_trouble(value, SHARD_DIGITS if name == "neon-shard-id" else ID_DIGITS) is not None:
        call.fail("INVALID_ARGUMENT", f"invalid {name}")
    return value.lower()


def _decoded(call: Call, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(call.message())
    except page_api.MalformedMessage as error:
        call.fail("INVALID_ARGUMENT", str(error))


def in_chunks(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in chunks of one size, the last one excepted."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def open_grpc_pageserver(pageserver: GrpcPageserver) -> AbstractAsyncContextManager[str]:
    """Serve on a free loopback port for as long as the block runs; yield the URL, `grpc://host:port`."""
    handlers = {page_api.GET_BASE_BACKUP: pageserver.get_base_backup, page_api.LEASE_LSN: pageserver.lease_lsn}
    return open_grpc_server(page_api.SERVICE, handlers)
