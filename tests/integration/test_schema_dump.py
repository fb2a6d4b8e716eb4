"""GET /database_schema and /hadron_liveness_probe with real programs on a real Postgres (contract 06 §6, §15)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio

from tests.component.http.world import open_world, stands
from tests.fakes import specs
from tests.fakes.host import FakeHost
from tests.integration.bare_postgres import BarePostgres, fresh
from trio_compute.deadlines import Deadlines
from trio_compute.embedded.free_ports import free_port
from trio_compute.host.run_as import RunAs
from trio_compute.postgres.tools import PostgresTools

pytestmark = pytest.mark.postgres

COMPLETE = "-- PostgreSQL database dump complete"
HOSTILE = [
    *("plain", "with space", 'double"quote', "single'quote", "per%cent", "back\\slash", "semi;colon", "a=b", "$$"),
    *("dbname=postgres", "host=nowhere port=1", "postgresql://nowhere/x", "--schema-only", "-h", "ünïcödé"),
    *("new\nline", "tab\tbed", "UPPER", "x" * 63, "question?mark&a=b#c", "%00", "{}", "a/b", "..", "100%25"),
]


class Tools(FakeHost):
    """Use the programs of a server tree on a server."""

    schema_dump = PostgresTools.schema_dump
    database_encoding = PostgresTools.database_encoding
    dumps_that_wait = PostgresTools.dumps_that_wait
    check_accepting = PostgresTools.check_accepting

    def __init__(self, server: BarePostgres, url: str | None, deadlines: Deadlines) -> None:
        super().__init__(specs.settings(connstr=url or server.url(), deadlines=deadlines), specs.config())
        self.pgbin = server._bin / "postgres"
        self.run_as = RunAs()
        self._dump_places = None
        self._dump_numbers = count(1)

    def _environ(self, parsed: object) -> dict[str, str]:
        return dict(os.environ)


@asynccontextmanager
async def asked(
    server: BarePostgres,
    url: str | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008
) -> AsyncIterator[httpx.AsyncClient]:
    async with open_world(host=Tools(server, url, deadlines)) as world, world.client() as client:
        yield client


async def dump(client: httpx.AsyncClient, database: str) -> httpx.Response:
    return await client.get(f"/database_schema?database={quote(database, safe='')}")


async def test_databases_of_hostile_names_are_dumped_whole(server: BarePostgres) -> None:
    """§15; a name goes through the environment and is nobody's connection string."""
    try:
        async with asked(server) as client:
            for number, name in enumerate(HOSTILE):
                server.do("CREATE DATABASE {}", name)
                server.do(f"CREATE TABLE marker_{number} (x int)", database=name)
                response = await dump(client, name)
                assert response.status_code == 200, name
                assert response.headers["content-type"] == "text/plain; charset=utf-8"
                assert COMPLETE in response.text[-200:]
                assert f"CREATE TABLE public.marker_{number}" in response.text, name
    finally:
        for name in HOSTILE:
            server.do("DROP DATABASE IF EXISTS {}", name)


async def test_a_database_in_another_encoding_is_dumped_in_utf_8(server: BarePostgres) -> None:
    name = fresh("latin")
    server.do("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'", name)
    server.do('CREATE TABLE "été" (x int)', database=name)
    async with asked(server) as client:
        response = await dump(client, name)
    assert 'CREATE TABLE public."été"' in response.content.decode("utf-8", errors="strict")


@pytest.mark.parametrize("name", ["none", "no'ne", "a=b", 'FATAL:  database "x" does not exist', "ünknown", "x" * 63])
async def test_a_database_that_is_not_there_is_404(server: BarePostgres, name: str) -> None:
    async with asked(server) as client:
        response = await dump(client, name)
    assert (response.status_code, response.json()) == (404, {"error": "database does not exist"})


async def test_a_database_that_takes_no_connections_is_500(server: BarePostgres) -> None:
    name = fresh("closed")
    server.do("CREATE DATABASE {} ALLOW_CONNECTIONS false", name)
    async with asked(server) as client:
        response = await dump(client, name)
    assert response.status_code == 500
    assert "is not currently accepting connections" in response.json()["error"]


async def test_a_server_that_is_not_there_is_500(server: BarePostgres) -> None:
    async with asked(server, f"postgresql://cloud_admin@127.0.0.1:{free_port()}/postgres") as client:
        response = await dump(client, "postgres")
    assert response.status_code == 500


@pytest.fixture
def large(server: BarePostgres) -> str:
    """Make a database whose schema does not fit into pipes and buffers."""
    name = fresh("large")
    server.do("CREATE DATABASE {}", name)
    body = "-- " + "x" * 50_000
    for number in range(400):
        server.do(f"CREATE FUNCTION f{number}() RETURNS int LANGUAGE sql AS '{body}\nSELECT 1'", database=name)
    return name


def dumps_of(database: str) -> list[int]:
    """Return the process ids of the pg_dumps of a database, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"PGDATABASE={database}".encode() in environ:
                found.append(int(entry.name))
    return found


async def test_a_large_schema_comes_whole(server: BarePostgres, large: str) -> None:
    async with asked(server) as client:
        response = await dump(client, large)
    assert len(response.content) > 20_000_000
    assert COMPLETE in response.text[-200:]
    assert dumps_of(large) == []


async def test_a_client_that_disconnects_takes_the_dump_with_it(server: BarePostgres, large: str) -> None:
    async with asked(server) as client:
        async with client.stream("GET", f"/database_schema?database={large}") as response:
            assert response.status_code == 200
            [pid] = dumps_of(large)
        await stands(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_dump_that_is_killed_in_the_middle_is_not_ended_cleanly(server: BarePostgres, large: str) -> None:
    """R-11."""
    async with asked(server) as client:
        async with client.stream("GET", f"/database_schema?database={large}") as response:
            assert response.status_code == 200
            [pid] = dumps_of(large)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in response.aiter_bytes():
                    pass


async def test_a_lock_that_somebody_holds_is_504_with_the_reason(server: BarePostgres) -> None:
    """T-13: the dump waited for a table without limit."""
    name = fresh("locked")
    server.do("CREATE DATABASE {}", name)
    server.sql("CREATE TABLE t (x int)", database=name)
    with server.connect(name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE t")
        async with asked(server, deadlines=Deadlines(dump_lock=0.5)) as client:
            with trio.fail_after(10):
                response = await dump(client, name)
    reason = "timed out: somebody holds a lock that the dump needs, for more than 0.5 s"
    assert (response.status_code, response.json()) == (504, {"error": reason})
    assert dumps_of(name) == []


async def test_many_dumps_that_wait_for_locks_hold_up_no_other(server: BarePostgres) -> None:
    """T-13: four of them blocked all dumps; the others are at their locks still when it is done."""
    name, other = fresh("locked"), fresh("free")
    server.do("CREATE DATABASE {}", name)
    server.do("CREATE DATABASE {}", other)
    server.sql("CREATE TABLE t (x int)", database=name)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with server.connect(name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE t")
        async with asked(server, deadlines=Deadlines(dump_lock=60)) as client, trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(dump, client, name)
            await stands(lambda: server.sql(waits, name)[0][0] >= 4)
            with trio.fail_after(5):
                assert (await dump(client, other)).status_code == 200
            assert server.sql(waits, name)[0][0] >= 4
            nursery.cancel_scope.cancel()
    server.do("DROP DATABASE {} WITH (FORCE)", name)
    server.do("DROP DATABASE {}", other)


async def test_a_postgres_that_does_not_accept_is_504_and_blocks_nobody_afterwards(server: BarePostgres) -> None:
    """T-13: the postmaster stands still; four dumps that wait for it do not keep a later one from working."""
    postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    async with asked(server, deadlines=Deadlines(dump_connect=2.0, request_connect=2.0)) as client:
        server.kill(postmaster, signal.SIGSTOP)
        codes: list[int] = []

        async def ask() -> None:
            codes.append((await dump(client, "postgres")).status_code)

        try:
            with trio.fail_after(15):
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(ask)
        finally:
            server.kill(postmaster, signal.SIGCONT)
        assert codes == [504] * 5
        with trio.fail_after(5):
            assert (await dump(client, "postgres")).status_code == 200


async def test_a_password_of_the_url_is_used(server: BarePostgres) -> None:
    """R-11."""
    role = fresh("dumper")
    server.do("CREATE ROLE {} LOGIN SUPERUSER PASSWORD 'right'", role)
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    try:
        hba.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}")
        server.sql("SELECT pg_reload_conf()")
        async with asked(server, f"postgresql://{role}:right@127.0.0.1:{server.port}/postgres") as client:
            assert (await dump(client, "postgres")).status_code == 200
        async with asked(server, f"postgresql://{role}:wrongpassword@127.0.0.1:{server.port}/postgres") as client:
            response = await dump(client, "postgres")
    finally:
        hba.write_text(before)
        server.sql("SELECT pg_reload_conf()")
    assert response.status_code == 500
    assert "wrongpassword" not in response.text


async def test_the_liveness_probe_tells_whether_postgres_accepts_connections(server: BarePostgres) -> None:
    async with asked(server) as client:
        response = await client.get("/hadron_liveness_probe")
    assert (response.status_code, response.json()) == (200, "ok")
    async with asked(server, f"postgresql://cloud_admin@127.0.0.1:{free_port()}/postgres") as client:
        response = await client.get("/hadron_liveness_probe")
    assert response.status_code == 500
    assert "no response" in response.json()["error"]
