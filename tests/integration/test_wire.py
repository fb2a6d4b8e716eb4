"""The stand-ins speak libpq as Neon's own services do (E-01, E-02, E-03, E-05, E-07)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio

from tests.fakes.specs import TENANT, TIMELINE
from tests.integration.pageservers import SNAPSHOT_LSN, Storage, open_tcp_server
from tests.integration.rust_client import RustClient, fields, rust_client
from trio_compute.embedded.safekeeper import SafekeeperGroup
from trio_compute.embedded.wire import message, serve_session, token_login

BASEBACKUP = f"basebackup {TENANT} {TIMELINE} --gzip"
OTHER_TENANT = "c" * 32
SESSION = {"options": f"-c timeline_id={TIMELINE} tenant_id={TENANT}"}
PLAIN_ERROR = {"S": "ERROR", "C": "XX000", "M": "JWT authentication error"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
async def pageserver(storage: Storage) -> AsyncIterator[str]:
    async with storage.open_libpq() as url:
        yield url


@pytest.fixture
async def safekeeper(storage: Storage, tmp_path: Path) -> AsyncIterator[str]:
    group = SafekeeperGroup(tmp_path / "safekeepers", {})

    async def session(stream: trio.SocketStream) -> None:
        handle = partial(group.handle, group.members[0])
        await serve_session(stream, authenticate=token_login(storage.issuer), handle_query=handle)

    async with open_tcp_server(session) as port:
        yield f"127.0.0.1:{port}"


async def test_the_originals_client_fetches_a_basebackup(storage: Storage, pageserver: str) -> None:
    """E-01: Parse, Describe, Bind, Execute and Sync, and all bytes of 1 archive."""
    async with rust_client(pageserver, storage.token()) as client:
        assert await client.prepare(BASEBACKUP) == [
            (b"1", b""),
            (b"t", b"\0\0"),
            (b"n", b""),
            (b"Z", b"I"),
        ]
        answer = await client.execute()
    assert [kind for kind, _ in answer if kind != b"d"] == [b"2", b"H", b"c", b"C", b"Z"]
    assert answer[-2] == (b"C", b"SELECT 1\0")
    archive = b"".join(body for kind, body in answer if kind == b"d")
    assert gzip.decompress(archive) == gzip.decompress(storage.archive.read_bytes())


async def test_an_error_of_the_extended_protocol_leaves_the_session_usable(storage: Storage, pageserver: str) -> None:
    """E-01: readiness comes with Sync only, once; then a statement can be closed and another one run."""
    async with rust_client(pageserver, storage.token()) as client:
        await client.prepare("basebackup x")
        kinds = [kind for kind, _ in await client.execute()]
        assert kinds == [b"2", b"E", b"Z"]
        await client.stream.send_all(message(b"C", b"Ss0\0") + message(b"S", b""))
        assert await client.until(b"Z") == [(b"3", b""), (b"Z", b"I")]
        await client.prepare("set x = 1")
        assert [kind for kind, _ in await client.execute()] == [b"2", b"C", b"Z"]


def test_psycopg_can_use_the_extended_protocol_too(storage: Storage) -> None:
    """E-01: a parameterless statement in a pipeline, by libpq itself."""

    async def ask() -> None:
        async with storage.open_libpq() as url:
            await trio.to_thread.run_sync(extended, url, storage.token())

    def extended(url: str, token: str) -> None:
        with psycopg.connect(url, password=token, autocommit=True, sslmode="disable") as connection:
            result = connection.pgconn.exec_params(b"set x = 1", None)
            assert (result.status, result.command_status) == (psycopg.pq.ExecStatus.COMMAND_OK, b"SELECT 1")

    trio.run(ask)


async def test_a_token_of_another_tenant_may_log_in_and_no_more(storage: Storage, pageserver: str) -> None:
    """E-02: 2 commands fail, each by both protocols, and the session stays."""
    async with rust_client(pageserver, storage.token(tenant_id=OTHER_TENANT)) as client:
        assert client.greeting[-1] == (b"Z", b"I")
        for command in (BASEBACKUP, f"lease lsn {TENANT} {TIMELINE} {SNAPSHOT_LSN}"):
            (_, error), ready = await client.query(command)
            assert fields(error) == PLAIN_ERROR
            assert ready == (b"Z", b"I")
            await client.prepare(command)
            _, (_, error), _ = await client.execute()
            assert fields(error)["M"] == "Unauthorized: Tenant id mismatch. Permission denied"
        assert await client.query("set x = 1") == [(b"C", b"SELECT 1\0"), (b"Z", b"I")]


async def test_a_bad_token_is_an_error_at_the_login_and_the_end(
    storage: Storage, pageserver: str, safekeeper: str
) -> None:
    """E-02, E-03: 6 bad tokens at 2 services; severity ERROR, then the connection is closed."""
    signed = storage.issuer.sign
    bad = (
        "no token",
        storage.token(exp=1),
        signed({"tenant_id": TENANT}),
        signed({"scope": "everything", "tenant_id": TENANT}),
        signed({"scope": "tenant"}),
        signed({"scope": "tenant", "tenant_id": "x"}),
    )
    for token in bad:
        for address in (pageserver, safekeeper):
            async with rust_client(address, token) as client:
                ((kind, body),) = client.greeting
                assert (kind, fields(body)) == (b"E", PLAIN_ERROR)
                with pytest.raises(EOFError):
                    await client.receive()


@pytest.mark.parametrize(
    ("scope", "pageserver_takes_it", "safekeeper_takes_it"),
    [
        ("pageserverapi", True, False),
        ("safekeeperdata", False, True),
        ("tenant", True, True),
        ("tenantendpoint", False, False),
        ("admin", False, False),
        ("generations_api", False, False),
    ],
)
async def test_a_scope_is_good_where_it_belongs(
    storage: Storage,
    pageserver: str,
    safekeeper: str,
    scope: str,
    pageserver_takes_it: bool,
    safekeeper_takes_it: bool,
) -> None:
    """E-03."""
    token = storage.issuer.sign({"scope": scope, **({"tenant_id": TENANT} if scope == "tenant" else {})})
    async with rust_client(pageserver, token) as client:
        assert ((await client.query(BASEBACKUP))[0][0] == b"H") is pageserver_takes_it
    async with rust_client(safekeeper, token, **SESSION) as client:
        assert ((await client.query("TIMELINE_STATUS"))[0][0] == b"T") is safekeeper_takes_it


async def test_the_login_tells_the_parameters_that_the_real_ones_tell(storage: Storage, pageserver: str) -> None:
    """E-07: with a token 1 parameter, without any 3, and never a key to cancel with."""
    async with rust_client(pageserver, storage.token()) as client:
        assert client.greeting == [(b"R", bytes(4)), (b"S", b"client_encoding\0UTF8\0"), (b"Z", b"I")]

    async def session(stream: trio.SocketStream) -> None:
        await serve_session(stream, authenticate=None, handle_query=storage.libpq.handle)

    async with open_tcp_server(session) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = RustClient(stream)
        await stream.send_all(struct.pack("!II", 9, 196608) + b"\0")
        assert [body for kind, body in await client.until(b"Z") if kind == b"S"] == [
            b"client_encoding\0UTF8\0",
            b"integer_datetimes\0on\0",
            b"server_version\x0014.1\0",
        ]


async def test_what_is_not_there_is_told_in_the_words_of_the_real_ones(storage: Storage, pageserver: str) -> None:
    """E-07: a basebackup by the simple protocol hears no more than "not found"; a lease hears all."""
    everything = storage.issuer.sign({"scope": "pageserverapi"})
    async with rust_client(pageserver, everything) as client:
        for tenant, timeline, text in (
            (OTHER_TENANT, TIMELINE, f"Not found: Tenant {OTHER_TENANT} not found"),
            (TENANT, OTHER_TENANT, f"Not found: Timeline {TENANT}/{OTHER_TENANT} was not found"),
        ):
            (_, error), _ = await client.query(f"basebackup {tenant} {timeline}")
            assert fields(error) == {"S": "ERROR", "C": "XX000", "M": "not found"}
            await client.prepare(f"basebackup {tenant} {timeline}")
            assert fields((await client.execute())[1][1])["M"] == text
            (_, error), _ = await client.query(f"lease lsn {tenant} {timeline} 0/1")
            assert fields(error)["M"] == text


async def test_another_shard_has_neither_a_basebackup_nor_the_lease(storage: Storage) -> None:
    """E-07: shard 1 of 2 is asked for the basebackup, and for the leases of both shards."""

    async def session(stream: trio.SocketStream) -> None:
        handle = partial(storage.libpq.handle, shard="0102")
        await serve_session(stream, authenticate=token_login(storage.issuer), handle_query=handle)

    async with open_tcp_server(session) as port, rust_client(f"127.0.0.1:{port}", storage.token()) as client:
        (_, error), _ = await client.query(BASEBACKUP)
        assert fields(error)["M"] == "not found"
        (_, error), _ = await client.query(f"lease lsn {TENANT}-0002 {TIMELINE} {SNAPSHOT_LSN}")
        assert fields(error)["M"] == f"Not found: Tenant {TENANT}-0002 not found"
        assert (await client.query(f"lease lsn {TENANT}-0102 {TIMELINE} {SNAPSHOT_LSN}"))[0][0] == b"T"


@pytest.mark.parametrize(
    ("options", "query", "text"),
    [
        ("", "TIMELINE_STATUS", "tenantid is required"),
        (f"-c tenant_id={TENANT}", "TIMELINE_STATUS", "timelineid is required"),
        (SESSION["options"], "timeline_status", "unsupported command timeline_status"),
        (SESSION["options"], "SELECT 1", "unsupported command SELECT 1"),
    ],
)
async def test_a_safekeeper_refuses_in_the_words_of_a_real_one(
    storage: Storage, safekeeper: str, options: str, query: str, text: str
) -> None:
    """E-07."""
    async with rust_client(safekeeper, storage.token(), options=options) as client:
        (_, error), ready = await client.query(query)
        assert fields(error) == {"S": "ERROR", "C": "XX000", "M": text}
        assert ready == (b"Z", b"I")


@pytest.mark.parametrize("prepared", [False, True])
async def test_who_waits_for_an_answer_is_told_of_the_end(storage: Storage, prepared: bool) -> None:
    """E-05: 57P01, then the connection is closed; by both protocols."""
    storage.libpq.faults.delay_before_copy_seconds = 600
    async with trio.open_nursery() as nursery:
        ended = trio.Event()
        opened: list[str] = []

        async def serve() -> None:
            async with storage.open_libpq() as url:
                opened.append(url)
                started.set()
                await ended.wait()

        started = trio.Event()
        nursery.start_soon(serve)
        await started.wait()
        async with rust_client(opened[0], storage.token()) as client:
            if prepared:
                await client.prepare(BASEBACKUP)
                await client.begin_execution()
            else:
                await client.stream.send_all(message(b"Q", BASEBACKUP.encode() + b"\0"))
            with trio.fail_after(5):
                while not storage.libpq.commands:
                    await trio.lowlevel.checkpoint()
            ended.set()
            (_, error) = (await client.until(b"E"))[-1]
            assert fields(error) == {"S": "ERROR", "C": "57P01", "M": "shutdown"}
            with pytest.raises(EOFError):
                await client.receive()
