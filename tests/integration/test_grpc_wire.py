"""The embedded pageserver takes what the original's gRPC client sends, which grpcio's server does not (E-07, E-08)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import trio

from tests.fakes.specs import TENANT, TIMELINE
from tests.integration.pageservers import SNAPSHOT_LSN, Storage
from trio_compute.embedded.grpc_pageserver import open_grpc_pageserver
from trio_compute.embedded.grpc_wire import Call, open_grpc_server
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.storage import page_api

IDENTITY = [("neon-tenant-id", TENANT), ("neon-timeline-id", TIMELINE), ("neon-shard-id", "0000")]
Headers = list[tuple[str, str]]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
async def url(storage: Storage) -> AsyncIterator[str]:
    async with open_grpc_pageserver(storage.grpc) as url:
        yield url


class Answer:
    """Hold what came of one call."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    @property
    def status(self) -> tuple[int, str]:
        return int(self.headers["grpc-status"]), self.headers["grpc-message"]

    def messages(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.body):
            compressed, length = struct.unpack_from("!?I", self.body, at)
            assert not compressed
            found.append(bytes(self.body[at + 5 : at + 5 + length]))
            at += 5 + length
        return found


class RustGrpcClient:
    """Speak HTTP/2 as hyper does with a URL of the scheme grpc: the scheme is sent as it stands there."""

    def __init__(self, stream: trio.SocketStream, authority: str) -> None:
        self._stream = stream
        self._authority = authority
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
        self.connection.initiate_connection()

    async def call(self, method: str, message: bytes, metadata: Headers) -> Answer:
        stream_id = await self.begin(method, message, metadata)
        answer = Answer()
        with trio.fail_after(10):
            while not await self._advance(stream_id, answer):
                pass
        return answer

    async def begin(self, method: str, message: bytes, metadata: Headers) -> int:
        """Send a request and return the number of its stream."""
        stream_id = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "grpc"), (":authority", self._authority)]
        head += [(":path", f"/{page_api.SERVICE}/{method}"), ("te", "trailers"), ("content-type", "application/grpc")]
        self.connection.send_headers(stream_id, head + metadata)
        self.connection.send_data(stream_id, struct.pack("!?I", False, len(message)) + message, end_stream=True)
        await self.flush()
        return stream_id

    async def flush(self) -> None:
        await self._stream.send_all(self.connection.data_to_send())

    async def _advance(self, stream_id: int, answer: Answer) -> bool:
        await self.flush()
        data = await self._stream.receive_some(65536)
        assert data, "the server hung up"
        ended = False
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                answer.headers |= {str(name): str(value) for name, value in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                answer.body += event.data or b""
                self.connection.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
            ended = ended or isinstance(event, h2.events.StreamEnded)
        return ended


@asynccontextmanager
async def rust_grpc_client(url: str) -> AsyncIterator[RustGrpcClient]:
    authority = url.removeprefix("grpc://")
    async with await trio.open_tcp_stream("127.0.0.1", int(authority.rpartition(":")[2])) as stream:
        yield RustGrpcClient(stream, authority)


async def test_the_originals_client_fetches_a_basebackup_over_grpc(storage: Storage, url: str) -> None:
    """E-08: `:scheme: grpc`; 1 archive, in messages of 256 KiB, and a lease over the same connection."""
    metadata = [*IDENTITY, ("authorization", f"Bearer {storage.token()}")]
    async with rust_grpc_client(url) as client:
        answer = await client.call(page_api.GET_BASE_BACKUP, page_api.BaseBackupRequest().encode(), metadata)
        assert answer.status == (0, "")
        chunks = [bytes(page_api.decode_chunk(message)) for message in answer.messages()]
        assert b"".join(chunks) == storage.archive.read_bytes()
        assert {len(chunk) for chunk in chunks[:-1]} == {256 * 1024}
        lease = await client.call(page_api.LEASE_LSN, page_api.encode_lease_request(SNAPSHOT_LSN), metadata)
        assert lease.status == (0, "")
        (expiry,) = lease.messages()
        assert page_api.decode_lease_response(expiry) > 0


async def test_a_plain_basebackup_comes_over_grpc_too(storage: Storage, url: str) -> None:
    """E-07."""
    metadata = [*IDENTITY, ("authorization", f"Bearer {storage.token()}")]
    request = page_api.BaseBackupRequest(compression=page_api.Compression.NONE)
    async with rust_grpc_client(url) as client:
        answer = await client.call(page_api.GET_BASE_BACKUP, request.encode(), metadata)
    chunks = [bytes(page_api.decode_chunk(message)) for message in answer.messages()]
    assert b"".join(chunks) == gzip.decompress(storage.archive.read_bytes())


def without(name: str) -> Headers:
    return [(key, value) for key, value in IDENTITY if key != name]


def instead(name: str, other: str) -> Headers:
    return [(key, other if key == name else value) for key, value in IDENTITY]


OTHER = "f" * 32
NEWEST = page_api.BaseBackupRequest()


@pytest.mark.parametrize(
    ("metadata", "token", "request_", "status", "text"),
    [
        (without("neon-tenant-id"), True, NEWEST, "INVALID_ARGUMENT", "missing neon-tenant-id"),
        (without("neon-timeline-id"), True, NEWEST, "INVALID_ARGUMENT", "missing neon-timeline-id"),
        (without("neon-shard-id"), True, NEWEST, "INVALID_ARGUMENT", "missing neon-shard-id"),
        (instead("neon-tenant-id", "xy"), True, NEWEST, "INVALID_ARGUMENT", "invalid neon-tenant-id"),
        (instead("neon-shard-id", "000"), True, NEWEST, "INVALID_ARGUMENT", "invalid neon-shard-id"),
        (IDENTITY, None, NEWEST, "UNAUTHENTICATED", "no authorization header"),
        (IDENTITY, "Basic x", NEWEST, "INVALID_ARGUMENT", "invalid authorization header"),
        (IDENTITY, "Bearer x", NEWEST, "INVALID_ARGUMENT", "invalid JWT token: invalid token"),
        (instead("neon-tenant-id", OTHER), True, NEWEST, "PERMISSION_DENIED", "Tenant id mismatch. Permission denied"),
        (
            instead("neon-timeline-id", OTHER),
            True,
            NEWEST,
            "NOT_FOUND",
            f"Timeline {TENANT}/{OTHER} was not found",
        ),
        (
            instead("neon-shard-id", "0102"),
            True,
            NEWEST,
            "INVALID_ARGUMENT",
            "request only valid on shard zero (requested shard 0102)",
        ),
        (
            IDENTITY,
            True,
            page_api.BaseBackupRequest(compression=0),
            "INVALID_ARGUMENT",
            "field 'compression' has invalid value 'Unknown'",
        ),
        (
            IDENTITY,
            True,
            page_api.BaseBackupRequest(compression=7),
            "INVALID_ARGUMENT",
            "field 'compression' has invalid value '7'",
        ),
        (
            IDENTITY,
            True,
            page_api.BaseBackupRequest(lsn=Lsn(SNAPSHOT_LSN - 1)),
            "INVALID_ARGUMENT",
            (
                f"invalid basebackup LSN: LSN {Lsn(SNAPSHOT_LSN - 1)} is earlier than latest GC cutoff {SNAPSHOT_LSN} "
                "(we might've already garbage collected needed data)"
            ),
        ),
    ],
)
async def test_a_refusal_has_the_status_and_the_words_of_a_real_one(
    storage: Storage,
    url: str,
    metadata: Headers,
    token: Any,
    request_: page_api.BaseBackupRequest,
    status: str,
    text: str,
) -> None:
    """E-07."""
    header = f"Bearer {storage.token()}" if token is True else token
    if header is not None:
        metadata = [*metadata, ("authorization", header)]

    def ask() -> tuple[str, str]:
        with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
            path = f"/{page_api.SERVICE}/{page_api.GET_BASE_BACKUP}"
            try:
                list(channel.unary_stream(path)(request_.encode(), metadata=metadata, timeout=10))
            except grpc.RpcError as error:
                return error.code().name, error.details()
        return "OK", ""

    assert await trio.to_thread.run_sync(ask) == (status, text)


async def test_leases_are_refused_in_the_words_of_a_real_one(storage: Storage, url: str) -> None:
    """E-07: no LSN, and one that was left behind."""
    metadata = [*IDENTITY, ("authorization", f"Bearer {storage.token()}")]
    early = Lsn(SNAPSHOT_LSN - 1)
    async with rust_grpc_client(url) as client:
        answer = await client.call(page_api.LEASE_LSN, page_api.encode_lease_request(INVALID_LSN), metadata)
        assert answer.status == (3, "required%20field%20%27lsn%27%20is%20missing")
        answer = await client.call(page_api.LEASE_LSN, page_api.encode_lease_request(early), metadata)
        assert answer.status[0] == 9
        assert "below%20the%20latest%20gc%20cutoff" in answer.status[1]


async def test_an_lsn_in_the_future_is_waited_for_over_grpc(storage: Storage, url: str) -> None:
    """E-04: INTERNAL after the limit, which is 300 seconds unless told otherwise."""
    assert storage.grpc.wait_lsn_seconds == 300
    storage.grpc.wait_lsn_seconds = 0.05
    metadata = [*IDENTITY, ("authorization", f"Bearer {storage.token()}")]
    request = page_api.BaseBackupRequest(lsn=Lsn(SNAPSHOT_LSN + 0x10000))
    async with rust_grpc_client(url) as client:
        answer = await client.call(page_api.GET_BASE_BACKUP, request.encode(), metadata)
    assert answer.status[0] == 13
    assert answer.status[1].startswith("Timed%20out%20while%20waiting%20for%20WAL%20record")


@pytest.mark.parametrize("path", ["/page_api.PageService/GetPages", "/elsewhere/GetBaseBackup"])
async def test_an_unknown_method_is_unimplemented(url: str, path: str) -> None:
    def ask() -> str:
        with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
            try:
                channel.unary_unary(path)(b"", timeout=10)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    assert await trio.to_thread.run_sync(ask) == "UNIMPLEMENTED"


async def test_calls_of_one_connection_run_beside_one_another() -> None:
    """E-08: one waits until the other has begun; each has large messages to send."""
    both = trio.Event()
    began: list[int] = []

    async def handle(call: Call) -> None:
        began.append(len(call.body))
        if len(began) == 2:
            both.set()
        await both.wait()
        for _ in range(4):
            await call.send(bytes(1024 * 1024))

    def ask(url: str, take: Callable[[int], None]) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(url.removeprefix("grpc://"), options=options) as channel:
            calls = [channel.unary_stream("/s/m")(b"", timeout=20) for _ in range(2)]
            for each in calls:
                take(sum(map(len, each)))

    taken: list[int] = []
    async with open_grpc_server("s", {"m": handle}) as url:
        await trio.to_thread.run_sync(ask, url, taken.append)
    assert taken == [4 * 1024 * 1024] * 2


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100])
async def test_what_is_no_http2_ends_the_connection(url: str, data: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        await stream.send_all(data)
        with trio.fail_after(5):
            while await stream.receive_some(65536):
                pass


async def test_a_client_that_leaves_in_the_middle_disturbs_nobody(storage: Storage, url: str) -> None:
    """E-08: 3 ways to leave while an answer waits to be sent; then another client is served."""
    metadata = [*IDENTITY, ("authorization", f"Bearer {storage.token()}")]
    for leave in ("goodbye", "reset", "hang up"):
        async with rust_grpc_client(url) as client:
            await client.begin(page_api.GET_BASE_BACKUP, NEWEST.encode(), metadata)
            if leave == "goodbye":
                client.connection.close_connection()
            elif leave == "reset":
                client.connection.reset_stream(1)
            await client.flush()
    async with rust_grpc_client(url) as client:
        answer = await client.call(page_api.GET_BASE_BACKUP, NEWEST.encode(), [*metadata, ("x-name", "\u00ff")])
        assert answer.status == (0, "")
