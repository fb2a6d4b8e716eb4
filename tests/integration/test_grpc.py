"""Basebackups over gRPC on real sockets: what can go wrong and what we make of it (contract 07 §5)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from tests.integration.compute import Rig
from tests.integration.pageservers import SEGMENT_BYTES, SNAPSHOT_LSN, Leftovers, Storage, open_cutting_proxy
from trio_compute.deadlines import Deadlines
from trio_compute.embedded.grpc_pageserver import GrpcFaults, GrpcPageserver, open_grpc_pageserver
from trio_compute.errors import ComputeError, SpecError, StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.storage import page_api
from trio_compute.storage.pageserver import Received, fetch_basebackup
from trio_compute.telemetry.spans import Recorder

# What grpc.StatusCode offers beyond success; the contract's table names six of them.
FAILURES = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
async def url(storage: Storage) -> AsyncIterator[str]:
    async with open_grpc_pageserver(storage.grpc) as url:
        yield url


async def fetch(
    spec: ParsedSpec,
    target: Path,
    lsn: Lsn = INVALID_LSN,
    *,
    spans: Recorder | None = None,
    connect_seconds: float = 2,
    idle_seconds: float = 30,
) -> Received:
    target.mkdir(exist_ok=True)
    deadlines = Deadlines(pageserver_idle=idle_seconds, pageserver_connect=connect_seconds)
    return await fetch_basebackup(spec, target, lsn, run_as=RunAs(), spans=spans or Recorder(), deadlines=deadlines)


async def failure(spec: ParsedSpec, target: Path, **options: Any) -> str:
    with trio.fail_after(15), pytest.raises(StorageError) as raised:
        await fetch(spec, target, **options)
    return str(raised.value)


async def test_a_basebackup_arrives_whole(storage: Storage, url: str, public_tmp: Path) -> None:
    spans = Recorder()
    received = await fetch(storage.spec(url), public_tmp / "pgdata", spans=spans)
    assert received == Received(compressed_bytes=storage.archive.stat().st_size, files=3)
    assert (public_tmp / "pgdata" / "pg_wal" / ("0" * 24)).stat().st_size == SEGMENT_BYTES
    assert [span.name for span in spans.spans] == ["basebackup.connect", "basebackup.unpack"]
    assert all(span.duration_seconds and not span.failed for span in spans.spans)


@pytest.mark.parametrize("chunk_bytes", [1000, 4 * 1024 * 1024])
async def test_the_borders_of_chunks_mean_nothing(chunk_bytes: int, tmp_path: Path, public_tmp: Path) -> None:
    """Contract 07 §5: up to 4 MiB in one message, which is more than grpcio takes unless told."""
    storage = Storage(tmp_path, segment_bytes=8 * 1024 * 1024)
    storage.grpc.faults = GrpcFaults(chunk_bytes=chunk_bytes)
    async with open_grpc_pageserver(storage.grpc) as url:
        received = await fetch(storage.spec(url), public_tmp / "pgdata")
    assert received.compressed_bytes == storage.archive.stat().st_size


@pytest.mark.parametrize(
    ("lsn", "mode", "expected"),
    [
        ("0/0", "Primary", page_api.BaseBackupRequest()),
        ("0/2000000", "Primary", page_api.BaseBackupRequest(lsn=SNAPSHOT_LSN)),
        ("0/0", "Replica", page_api.BaseBackupRequest(replica=True)),
        ("0/2000000", {"Static": "0/2000000"}, page_api.BaseBackupRequest(lsn=SNAPSHOT_LSN, replica=True)),
    ],
)
async def test_the_request_follows_mode_and_lsn(
    lsn: str, mode: Any, expected: page_api.BaseBackupRequest, storage: Storage, url: str, public_tmp: Path
) -> None:
    """Contract 07 §5: gzip always, full never, replica for what is not a primary."""
    await fetch(storage.spec(url, mode=mode), public_tmp / "pgdata", Lsn.parse(lsn))
    (request,) = storage.grpc.requests
    assert page_api.BaseBackupRequest.decode(request.message) == expected


async def test_the_metadata_name_shard_zero_of_a_sharded_tenant(storage: Storage, url: str, public_tmp: Path) -> None:
    spec = storage.spec(url, "grpc://127.0.0.1:1", "grpc://127.0.0.1:1")
    await fetch(spec, public_tmp / "pgdata")
    (request,) = storage.grpc.requests
    assert request.metadata["neon-shard-id"] == "0003"
    assert request.metadata["neon-tenant-id"] == spec.tenant_id
    assert request.metadata["neon-timeline-id"] == spec.timeline_id
    assert request.metadata["authorization"] == f"Bearer {storage.token()}"


# Before any data, in the middle, and after the last byte of a complete archive.
@pytest.mark.parametrize("after_chunks", [0, 2, 99])
@pytest.mark.parametrize("status", FAILURES)
async def test_every_status_but_ok_is_a_failure_whenever_it_comes(
    status: str, after_chunks: int, storage: Storage, url: str, public_tmp: Path
) -> None:
    """S-07: the stream is read to its final status."""
    storage.grpc.faults = GrpcFaults(status=status, status_after_chunks=after_chunks)
    assert await failure(storage.spec(url), public_tmp / "pgdata") == f"pageserver: {status}: stand-in fault"


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (GrpcFaults(end_after_chunks=2), "the gzip stream ends early"),
        (GrpcFaults(end_after_chunks=0), "the gzip stream ends early"),
        (GrpcFaults(corrupt_chunk=2), "basebackup: "),
        (GrpcFaults(malformed=True), "pageserver: unusable answer"),
        (GrpcFaults(status="INTERNAL", status_text="x" * 5000), " […]"),
    ],
    ids=["ends early", "no data", "corrupt", "malformed message", "long text"],
)
async def test_every_fault_is_an_error_and_leaves_nothing(
    faults: GrpcFaults, text: str, storage: Storage, url: str, public_tmp: Path
) -> None:
    """S-07, S-08: a stream with status OK is checked like any other."""
    await fetch(storage.spec(url), public_tmp / "first")
    leftovers = Leftovers()
    storage.grpc.faults = faults
    message = await failure(storage.spec(url), public_tmp / "pgdata")
    assert text in message
    assert len(message) < 3000
    await leftovers.gone()


@pytest.mark.parametrize("after_bytes", [100, 500_000])
async def test_a_connection_that_is_cut_is_an_error(
    after_bytes: int, storage: Storage, url: str, public_tmp: Path
) -> None:
    async with open_cutting_proxy(url, after_bytes=after_bytes) as proxy:
        assert "pageserver" in await failure(storage.spec(proxy), public_tmp / "pgdata")


async def test_a_trailer_that_is_missing_is_an_error(storage: Storage, url: str, public_tmp: Path) -> None:
    storage.archive.write_bytes(storage.archive.read_bytes()[:-8])
    assert "ends early" in await failure(storage.spec(url), public_tmp / "pgdata")


async def test_a_refused_connection_is_an_error_at_once(storage: Storage, public_tmp: Path) -> None:
    began = trio.current_time()
    text = await failure(storage.spec("grpc://127.0.0.1:1"), public_tmp / "pgdata", connect_seconds=10)
    assert text.startswith("cannot connect to pageserver: UNAVAILABLE:")
    assert "refused" in text
    assert trio.current_time() - began < 3


async def test_an_unknown_host_is_an_error(storage: Storage, public_tmp: Path) -> None:
    text = await failure(storage.spec("grpc://no-such-host.invalid:1"), public_tmp / "pgdata")
    assert text.startswith("cannot connect to pageserver: ")


async def test_a_server_that_does_not_speak_is_given_up(storage: Storage, public_tmp: Path) -> None:
    """S-10: the connect limit covers HTTP/2's greeting."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    began = trio.current_time()
    text = await failure(storage.spec(f"grpc://127.0.0.1:{port}"), public_tmp / "pgdata", connect_seconds=0.5)
    assert text.startswith("cannot connect to pageserver: ")
    assert 0.4 < trio.current_time() - began < 3
    await listeners[0].aclose()


@pytest.mark.parametrize("faults", [GrpcFaults(stall_after_chunks=2), GrpcFaults(delay_seconds=60)], ids=str)
async def test_a_silent_pageserver_is_given_up(
    faults: GrpcFaults, storage: Storage, url: str, public_tmp: Path
) -> None:
    """S-10: an idle limit, long enough in production for the 300 s wait for an LSN."""
    storage.grpc.faults = faults
    text = await failure(storage.spec(url), public_tmp / "pgdata", idle_seconds=0.3)
    assert text == "pageserver sent nothing for 0.3 s"
    assert Deadlines().pageserver_idle > 300


async def test_the_wait_for_an_lsn_outlasts_the_connect_limit(storage: Storage, url: str, public_tmp: Path) -> None:
    storage.grpc.faults = GrpcFaults(delay_seconds=1.0)
    await fetch(storage.spec(url), public_tmp / "pgdata", connect_seconds=0.3)


@pytest.mark.parametrize("faults", [GrpcFaults(stall_after_chunks=2), GrpcFaults(delay_seconds=60)], ids=str)
async def test_a_cancelled_transfer_ends_at_once_and_leaves_nothing(
    faults: GrpcFaults, storage: Storage, url: str, public_tmp: Path
) -> None:
    """S-09: thread, call and connection end with the scope."""
    await fetch(storage.spec(url), public_tmp / "first")
    leftovers = Leftovers()
    storage.grpc.faults = faults
    began = trio.current_time()
    with trio.move_on_after(0.3) as scope:
        await fetch(storage.spec(url), public_tmp / "pgdata")
    assert scope.cancelled_caught
    assert trio.current_time() - began < 1.3
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    await leftovers.gone(within_seconds=1.0)


async def test_a_cancellation_at_any_moment_leaves_nothing(storage: Storage, url: str, public_tmp: Path) -> None:
    """S-09: from before the connection to after the end."""
    await fetch(storage.spec(url), public_tmp / "first")
    leftovers = Leftovers()
    for step in range(60):
        with trio.move_on_after(step / 2000):
            await fetch(storage.spec(url), public_tmp / f"pgdata{step}")
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    await leftovers.gone()


@pytest.mark.parametrize(
    ("token", "status"),
    [(None, "UNAUTHENTICATED"), ("wrong-token", "INVALID_ARGUMENT"), ("another tenant's", "PERMISSION_DENIED")],
)
async def test_a_rejected_token_is_said_and_never_shown(
    token: str | None, status: str, storage: Storage, url: str, public_tmp: Path
) -> None:
    if token == "another tenant's":
        token = storage.token(tenant_id="f" * 32)
    text = await failure(storage.spec(url, storage_auth_token=token), public_tmp / "pgdata")
    assert text.startswith(f"pageserver: {status}: ")
    assert token is None or token not in text


async def test_a_server_that_repeats_the_token_does_not_get_it_shown(
    storage: Storage, url: str, public_tmp: Path
) -> None:
    storage.grpc.faults = GrpcFaults(status="INTERNAL", status_text=f"bad: {storage.token()}")
    assert await failure(storage.spec(url), public_tmp / "pgdata") == "pageserver: INTERNAL: bad: [redacted]"


async def test_a_token_that_cannot_be_sent_is_an_error(storage: Storage, url: str, public_tmp: Path) -> None:
    """C-02: an error of the spec, which is not tried again."""
    spec = storage.spec(url, storage_auth_token="line\nbreak")
    with pytest.raises(SpecError) as raised:
        await failure(spec, public_tmp / "pgdata")
    assert str(raised.value) == "pageserver connection: storage_auth_token has characters that gRPC cannot send"


@pytest.mark.parametrize(
    ("changes", "lsn", "status"),
    [({"timeline_id": "f" * 32}, "0/0", "NOT_FOUND"), ({}, "0/1", "INVALID_ARGUMENT")],
)
async def test_what_the_pageserver_does_not_have_is_said(
    changes: dict[str, Any], lsn: str, status: str, storage: Storage, url: str, public_tmp: Path
) -> None:
    with pytest.raises(StorageError, match=f"pageserver: {status}: "):
        await fetch(storage.spec(url, **changes), public_tmp / "pgdata", Lsn.parse(lsn))


async def test_a_file_in_the_way_is_an_error_of_ours(storage: Storage, url: str, public_tmp: Path) -> None:
    (public_tmp / "pgdata" / "PG_VERSION").mkdir(parents=True)
    with pytest.raises(ComputeError, match="PG_VERSION"):
        await fetch(storage.spec(url), public_tmp / "pgdata")


async def test_many_transfers_at_once_do_not_disturb_each_other(storage: Storage, url: str, public_tmp: Path) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(fetch, storage.spec(url), public_tmp / f"pgdata{number}")
    contents = {
        hashlib.sha256((public_tmp / f"pgdata{number}" / "pg_wal" / ("0" * 24)).read_bytes()).digest()
        for number in range(6)
    }
    assert len(contents) == 1


async def test_a_proxy_variable_does_not_lead_the_token_elsewhere(
    storage: Storage, url: str, public_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await fetch(storage.spec(url), public_tmp / "pgdata")


async def test_the_embedded_pageserver_leaves_no_thread_and_no_socket(storage: Storage) -> None:
    async with open_grpc_pageserver(storage.grpc):
        pass  # grpc's core keeps a few descriptors once it has been used
    leftovers = Leftovers(ignored=("Trio thread",))
    async with AsyncExitStack() as servers:
        for _ in range(3):
            await servers.enter_async_context(open_grpc_pageserver(storage.grpc))
    await leftovers.gone()


@pytest.mark.postgres
async def test_a_compute_starts_from_a_basebackup_over_grpc(rig: Rig) -> None:
    """Contract 07 §5, end to end; the process ends as cleanly as one that never loaded grpcio."""
    world = rig.world
    timelines = {(world.identity.tenant_id, world.identity.timeline_id): world.snapshots}
    pageserver = GrpcPageserver(timelines, world.issuer)
    async with open_grpc_pageserver(pageserver) as url:
        info = {"shard_count": 0, "shards": {"0000": {"pageservers": [{"grpc_url": url}]}}, "prefer_protocol": "grpc"}
        async with rig.compute(rig.config(pageserver_connection_info=info)) as child:
            await child.reach("running")
            metrics = await child.metrics()
            assert metrics["pageserver_connect_micros"] > 0
            assert metrics["basebackup_bytes"] > 1_000_000
            await child.terminate("immediate")
            assert await child.process.wait() == 0
    assert [request.method for request in pageserver.requests] == [page_api.GET_BASE_BACKUP]
    assert "Traceback" not in rig.log()


SCRIPT = """
import sys, trio
import trio_compute.run, trio_compute.storage.lsn_lease, trio_compute.services.lsn_lease
from pathlib import Path
from tests.fakes.specs import parsed
from trio_compute.errors import StorageError
from trio_compute.host.run_as import RunAs
from trio_compute.plan.lease import lease_terms
from trio_compute.deadlines import Deadlines
from trio_compute.storage.lsn_lease import request_lease
from trio_compute.storage.pageserver import fetch_basebackup
from trio_compute.telemetry.spans import Recorder

pageserver = {"libpq_url": "postgresql://u@127.0.0.1:1", "grpc_url": "grpc://127.0.0.1:1"}

async def main(protocol):
    info = {"shard_count": 0, "shards": {"0000": {"pageservers": [pageserver]}}, "prefer_protocol": protocol}
    spec = parsed(mode={"Static": "0/1"}, pageserver_connection_info=info)
    for request in (
        lambda: fetch_basebackup(spec, Path("/"), 0, run_as=RunAs(), spans=Recorder(), deadlines=Deadlines()),
        lambda: request_lease(lease_terms(spec)),
    ):
        try:
            await request()
        except StorageError:
            print(protocol, "grpc" in sys.modules)

for protocol in ("libpq", "grpc"):
    trio.run(main, protocol)
"""


def test_grpcio_is_imported_only_for_a_spec_that_prefers_it() -> None:
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.stdout.splitlines() == ["libpq False", "libpq False", "grpc True", "grpc True"], result.stderr
    assert result.stderr == ""
