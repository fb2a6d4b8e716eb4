"""LSN leases over both transports on real sockets (contract 07 §8; S-01…S-05, S-10; 02 D-30)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.specs import TENANT, TIMELINE
from tests.integration.pageservers import SNAPSHOT_LSN, Leftovers, Storage, open_tcp_server
from tests.unit.builders import NOON, make_settings
from trio_compute.embedded.grpc_pageserver import GrpcFaults, open_grpc_pageserver
from trio_compute.embedded.page_commands import parse_command
from trio_compute.embedded.pageserver import Faults
from trio_compute.embedded.wire import Session, WireError, serve_session
from trio_compute.errors import SpecError, StorageError
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.lease import lease_terms
from trio_compute.services.lsn_lease import LeaseState, LsnLease
from trio_compute.storage import page_api
from trio_compute.storage.lsn_lease import request_lease

BOTH = pytest.mark.parametrize("transport", ["libpq", "grpc"])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
async def urls(storage: Storage) -> AsyncIterator[dict[str, str]]:
    async with storage.open_libpq() as libpq, open_grpc_pageserver(storage.grpc) as grpc:
        yield {"libpq": libpq, "grpc": grpc}


async def ask(spec: ParsedSpec, *, connect_seconds: float = 2, answer_seconds: float = 5) -> float | None:
    wanted = lease_terms(spec)
    assert wanted is not None
    with trio.fail_after(15):
        return await request_lease(wanted, connect_seconds=connect_seconds, answer_seconds=answer_seconds)


def set_faults(storage: Storage, transport: str, *, libpq: Faults, grpc: GrpcFaults) -> None:
    storage.libpq.faults, storage.grpc.faults = (libpq, GrpcFaults()) if transport == "libpq" else (Faults(), grpc)


@BOTH
async def test_a_lease_is_granted_over_both_transports(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    """S-01, D-30."""
    expires_at = await ask(storage.static_spec(urls[transport]))
    assert expires_at is not None
    assert expires_at - time.time() == pytest.approx(600, abs=5)


async def test_the_libpq_command_names_shard_timeline_and_lsn(storage: Storage, urls: dict[str, str]) -> None:
    await ask(storage.static_spec(urls["libpq"]))
    await ask(storage.static_spec(urls["libpq"], urls["libpq"]))
    assert storage.libpq.commands == [
        f"lease lsn {TENANT} {TIMELINE} 0/2000000",
        f"lease lsn {TENANT}-0002 {TIMELINE} 0/2000000",
        f"lease lsn {TENANT}-0102 {TIMELINE} 0/2000000",
    ]


async def test_the_grpc_request_goes_to_every_shard_with_its_index(storage: Storage, urls: dict[str, str]) -> None:
    await ask(storage.static_spec(urls["grpc"], urls["grpc"]))
    assert [request.metadata["neon-shard-id"] for request in storage.grpc.requests] == ["0002", "0102"]
    for request in storage.grpc.requests:
        assert request.method == page_api.LEASE_LSN
        assert page_api.decode_lease_request(request.message) == SNAPSHOT_LSN
        assert request.metadata["authorization"] == f"Bearer {storage.token()}"


@BOTH
async def test_a_refusal_is_no_error(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    """Contract 07 §8: NULL, or FailedPrecondition."""
    set_faults(
        storage, transport, libpq=Faults(lease_refused=True), grpc=GrpcFaults(lease_status="FAILED_PRECONDITION")
    )
    assert await ask(storage.static_spec(urls[transport])) is None


@BOTH
async def test_an_lsn_that_is_gone_is_refused(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    assert await ask(storage.static_spec(urls[transport], lsn=Lsn(SNAPSHOT_LSN - 1))) is None


@BOTH
async def test_a_longer_lease_is_kept(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    spec = storage.static_spec(urls[transport])
    first = await ask(spec)
    set_faults(storage, transport, libpq=Faults(lease_seconds=10), grpc=GrpcFaults(lease_seconds=10))
    assert await ask(spec) == first


@BOTH
async def test_one_refusing_pageserver_refuses_all_and_the_others_are_asked_too(
    transport: str, storage: Storage, urls: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Storage(tmp_path / "other")
    other.issuer = other.grpc._issuer = storage.issuer
    other.libpq.faults.lease_refused = True
    other.grpc.faults.lease_status = "FAILED_PRECONDITION"
    async with other.open_libpq() as libpq, open_grpc_pageserver(other.grpc) as grpc:
        refusing = {"libpq": libpq, "grpc": grpc}[transport]
        assert await ask(storage.static_spec(urls[transport], refusing, urls[transport])) is None
    assert len(storage.libpq.commands) + len(storage.grpc.requests) == 2


@BOTH
async def test_the_earliest_of_several_ends_counts(
    transport: str, storage: Storage, urls: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Storage(tmp_path / "other")
    other.issuer = other.grpc._issuer = storage.issuer
    other.libpq.faults.lease_seconds = other.grpc.faults.lease_seconds = 100
    async with other.open_libpq() as libpq, open_grpc_pageserver(other.grpc) as grpc:
        shorter = {"libpq": libpq, "grpc": grpc}[transport]
        expires_at = await ask(storage.static_spec(urls[transport], shorter))
    assert expires_at is not None
    assert expires_at - time.time() == pytest.approx(100, abs=5)


@BOTH
async def test_a_failure_of_one_pageserver_fails_the_attempt(
    transport: str, storage: Storage, urls: dict[str, str]
) -> None:
    dead = {"libpq": "postgresql://u@127.0.0.1:1", "grpc": "grpc://127.0.0.1:1"}[transport]
    with pytest.raises(StorageError, match="pageserver"):
        await ask(storage.static_spec(urls[transport], dead))


@BOTH
async def test_an_error_is_transient(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    set_faults(storage, transport, libpq=Faults(lease_error=True), grpc=GrpcFaults(lease_status="INTERNAL"))
    with pytest.raises(StorageError, match="stand-in fault"):
        await ask(storage.static_spec(urls[transport]))


@pytest.mark.parametrize(
    "status", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNAVAILABLE", "CANCELLED"]
)
async def test_other_statuses_of_grpc_are_errors(status: str, storage: Storage, urls: dict[str, str]) -> None:
    storage.grpc.faults = GrpcFaults(lease_status=status)
    with pytest.raises(StorageError) as raised:
        await ask(storage.static_spec(urls["grpc"]))
    assert str(raised.value) == f"pageserver: {status}: stand-in fault"


@BOTH
async def test_a_pageserver_that_does_not_answer_is_given_up(
    transport: str, storage: Storage, urls: dict[str, str]
) -> None:
    """S-10."""
    set_faults(storage, transport, libpq=Faults(lease_delay_seconds=60), grpc=GrpcFaults(delay_seconds=60))
    began = trio.current_time()
    with pytest.raises(StorageError, match="pageserver"):
        await ask(storage.static_spec(urls[transport]), connect_seconds=0.2, answer_seconds=0.3)
    assert trio.current_time() - began < 3


@BOTH
async def test_a_server_that_does_not_speak_is_given_up(transport: str, storage: Storage) -> None:
    """S-10: the limit for connecting, not the one for the answer."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    url = {"libpq": f"postgresql://u@127.0.0.1:{port}", "grpc": f"grpc://127.0.0.1:{port}"}[transport]
    began = trio.current_time()
    with pytest.raises(StorageError, match="pageserver"):
        await ask(storage.static_spec(url), connect_seconds=0.3, answer_seconds=60)
    assert trio.current_time() - began < 3
    await listeners[0].aclose()


@BOTH
async def test_a_cancelled_request_ends_at_once_and_leaves_nothing(
    transport: str, storage: Storage, urls: dict[str, str]
) -> None:
    await ask(storage.static_spec(urls[transport]))
    leftovers = Leftovers()
    set_faults(storage, transport, libpq=Faults(lease_delay_seconds=60), grpc=GrpcFaults(delay_seconds=60))
    began = trio.current_time()
    with trio.move_on_after(0.3) as scope:
        await ask(storage.static_spec(urls[transport]))
    assert scope.cancelled_caught
    assert trio.current_time() - began < 1.3
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    if transport == "grpc":  # the embedded libpq server notices only after its delay that nobody listens
        await leftovers.gone(within_seconds=1.0)


@BOTH
async def test_a_wrong_token_is_an_error_and_never_shown(
    transport: str, storage: Storage, urls: dict[str, str]
) -> None:
    with pytest.raises(StorageError) as raised:
        await ask(storage.static_spec(urls[transport], storage_auth_token="wrong-token"))
    assert "wrong-token" not in str(raised.value)


@pytest.mark.parametrize("url", ["postgresql://", "http://a:1", "postgresql://a:1?sslmode=require"])
async def test_an_unusable_libpq_url_is_an_error_of_the_spec(url: str, storage: Storage) -> None:
    """S-05: reported as configuration, not retried as if it could heal."""
    with pytest.raises(SpecError):
        await ask(storage.static_spec(url))


async def test_an_unusable_grpc_url_is_an_error_of_the_spec(storage: Storage) -> None:
    """S-05."""
    with pytest.raises(SpecError):
        await ask(storage.static_spec("grpc://nowhere"))


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (["valid_until"], []),
        (["valid_until"], [["1"], ["2"]]),
        (["a", "b"], [["1", "2"]]),
        (["valid_until"], [["soon"]]),
        (["valid_until"], [["-1"]]),
        (["valid_until"], [["9" * 30]]),
        (["valid_until"], [["x" * 100_000]]),
    ],
    ids=["no row", "two rows", "two columns", "a word", "negative", "too large", "long"],
)
async def test_an_unusable_libpq_answer_is_transient(
    columns: list[str], rows: list[list[str]], storage: Storage
) -> None:
    async def handle(session: Session, _query: str) -> None:
        await session.send_rows(columns, rows, "SELECT 1")

    async def serve(stream: trio.SocketStream) -> None:
        await serve_session(stream, authenticate=None, handle_query=handle)

    async with open_tcp_server(serve) as port:
        with pytest.raises(StorageError) as raised:
            await ask(storage.static_spec(f"postgresql://u@127.0.0.1:{port}"))
    assert len(str(raised.value)) < 300


async def test_an_unusable_grpc_answer_is_transient(storage: Storage, urls: dict[str, str]) -> None:
    storage.grpc.faults = GrpcFaults(malformed=True)
    with pytest.raises(StorageError, match="unusable answer: the answer has no expiry"):
        await ask(storage.static_spec(urls["grpc"]))


@pytest.mark.parametrize(
    "query",
    [
        f"lease lsn {TENANT} {TIMELINE}",
        f"lease lsn {TENANT} {TIMELINE} 0/1 more",
        f"lease {TENANT} {TIMELINE} 0/1 0/1",
        f"lease lsn {TENANT}-01 {TIMELINE} 0/1",
        f"lease lsn {TENANT} {TIMELINE} 16",
    ],
)
def test_the_embedded_pageserver_refuses_bad_lease_commands(query: str) -> None:
    with pytest.raises(WireError):
        parse_command(query)


async def test_the_embedded_pageserver_refuses_the_invalid_lsn_over_grpc(
    storage: Storage, urls: dict[str, str]
) -> None:
    """Contract 07 §5: non-zero."""
    import grpc

    metadata = [("neon-tenant-id", TENANT), ("neon-timeline-id", TIMELINE), ("neon-shard-id", "0000")]
    metadata.append(("authorization", f"Bearer {storage.token()}"))

    def call() -> str:
        with grpc.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
            try:
                channel.unary_unary(f"/{page_api.SERVICE}/{page_api.LEASE_LSN}")(b"", metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    assert await trio.to_thread.run_sync(call) == "INVALID_ARGUMENT"


class Keeping:
    """Run the task that keeps the lease of a compute on real time, with short leases."""

    def __init__(self, spec: ParsedSpec) -> None:
        self.compute = Compute(make_settings())
        self.compute.apply(ev.SpecKnown(spec=spec, at=NOON))
        self.compute.apply(ev.Started())
        self.lease = LsnLease(self.compute, request_lease)

    def change_to(self, spec: ParsedSpec) -> None:
        for event in (ev.ApplyQueued(), ev.ApplyBegan(), ev.Applied(spec=spec)):
            self.compute.apply(event)

    async def until(self, state: LeaseState, *, requests: int = 1) -> None:
        with trio.fail_after(10):
            while self.lease.requests[state] < requests or self.lease.state is not state:
                await trio.sleep(0.01)


@BOTH
async def test_the_task_renews_on_real_sockets(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    """S-01, S-02, D-30."""
    set_faults(storage, transport, libpq=Faults(lease_seconds=2), grpc=GrpcFaults(lease_seconds=2))
    keeping = Keeping(storage.static_spec(urls[transport]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeping.lease.serve)
        began = trio.current_time()
        await keeping.until(LeaseState.HELD, requests=3)
        assert 1.8 < trio.current_time() - began < 5
        nursery.cancel_scope.cancel()


@BOTH
async def test_a_new_pageserver_wakes_the_task_from_its_retries(
    transport: str, storage: Storage, urls: dict[str, str]
) -> None:
    """S-03, S-04: a refusal's minute and an hour of retries end with the change."""
    set_faults(
        storage, transport, libpq=Faults(lease_refused=True), grpc=GrpcFaults(lease_status="FAILED_PRECONDITION")
    )
    keeping = Keeping(storage.static_spec(urls[transport]))
    other = {"libpq": "grpc", "grpc": "libpq"}[transport]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeping.lease.serve)
        await keeping.until(LeaseState.REFUSED)
        began = trio.current_time()
        keeping.change_to(storage.static_spec(urls[other]))
        await keeping.until(LeaseState.HELD)
        assert trio.current_time() - began < 5
        nursery.cancel_scope.cancel()


@BOTH
async def test_a_change_interrupts_a_request_that_hangs(transport: str, storage: Storage, urls: dict[str, str]) -> None:
    """S-04."""
    set_faults(storage, transport, libpq=Faults(lease_delay_seconds=60), grpc=GrpcFaults(delay_seconds=60))
    keeping = Keeping(storage.static_spec(urls[transport]))
    other: Any = {"libpq": "grpc", "grpc": "libpq"}[transport]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeping.lease.serve)
        await trio.sleep(0.3)
        keeping.change_to(storage.static_spec(urls[other]))
        await keeping.until(LeaseState.HELD)
        keeping.change_to(storage.spec(urls[other]))
        while keeping.lease.state is not LeaseState.NOT_NEEDED:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
