"""Users who hold what we need: which lock it is, whose, and what passes by itself (contract 05 K-12, K-14)."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import trio

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db import occupants
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.plan.catalog.wanted import Wanted

pytestmark = pytest.mark.postgres

IMPATIENT = Deadlines(catalog_lock=1, catalog_statement=5, catalog_retry=3, catalog_total=30)
OTHER_HASH = "0e" * 16


def hashed(name: str, digits: str = "0f") -> dict[str, str]:
    return {"name": name, "encrypted_password": digits * 16}


async def failed(server: BarePostgres, state: Wanted, deadlines: Deadlines = IMPATIENT) -> Failure:
    with pytest.raises(CatalogFailed) as raised:
        await apply(server, state, deadlines=deadlines)
    return raised.value.failures[0]


async def is_awaited(server: BarePostgres) -> None:
    """Wait until a statement of ours waits for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'compute\\_ctl%%'"
    while not server.sql(query):
        await trio.sleep(0.01)  # Postgres tells nobody


async def test_a_row_that_a_user_has_changed_and_not_committed_is_told_as_such(server: BarePostgres) -> None:
    """K-12: the lock of a row names its table and who changed it."""
    name = fresh("changing")
    await apply(server, wanted([hashed(name)]))
    with server.connect(application_name="psql") as holder:
        holder.execute(f"BEGIN; ALTER ROLE {name} CONNECTION LIMIT 7")
        failure = await failed(server, wanted([hashed(name, "0e")]))
    assert (failure.sqlstate, failure.object) == ("55P03", f"role {name}")
    assert "on a row of pg_authid held by pid" in (failure.detail or "")
    assert "application 'psql', idle in transaction" in (failure.detail or "")
    assert failure.statement == f'ALTER ROLE "{name}" LOGIN PASSWORD [redacted]'


async def test_a_change_that_a_user_commits_while_we_wait_is_no_failure(server: BarePostgres) -> None:
    """Postgres answers "tuple concurrently updated" then; once more helps."""
    name = fresh("changed")
    await apply(server, wanted([hashed(name)]))
    with server.connect() as holder:
        holder.execute(f"BEGIN; ALTER ROLE {name} CONNECTION LIMIT 7")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, server, wanted([hashed(name, "0e")]))
            await is_awaited(server)
            holder.execute("COMMIT")
    query = "SELECT rolconnlimit, rolpassword FROM pg_authid WHERE rolname = %s"
    assert server.sql(query, name) == [(7, f"md5{OTHER_HASH}")]


async def test_of_two_locks_one_after_another_the_last_is_told(server: BarePostgres) -> None:
    """K-12: the first one was given to us, so it is not the one that ended the statement."""
    name, leaver = fresh("twice"), fresh("leaver")
    await apply(server, wanted([leaver], [(name, "cloud_admin")]))
    server.do("CREATE TABLE public.t1 (); CREATE TABLE public.t2 ()", database=name)
    for table in ("t1", "t2"):
        server.do("ALTER TABLE {} OWNER TO {}", table, leaver, database=name)
    first, last = server.connect(name, options="-c search_path=public"), server.connect(name)
    with first, last:
        first.execute("BEGIN; LOCK TABLE public.t1")
        last.execute("BEGIN; LOCK TABLE public.t2")
        found: list[Failure] = []

        async def fail() -> None:
            delta = [{"action": "delete_role", "name": leaver}]
            deadlines = Deadlines(catalog_lock=3, catalog_retry=1)
            found.append(await failed(server, wanted(databases=[(name, "cloud_admin")], delta=delta), deadlines))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await is_awaited(server)
            await trio.sleep(1.7)  # longer than we wait before we look
            query = "SELECT relname::text FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE NOT granted"
            ((waits_for_first,),) = server.sql(query, database=name)
            {"t1": first, "t2": last}[waits_for_first].execute("ROLLBACK")
    ((held,),) = [({"t1", "t2"} - {waits_for_first},)]
    assert f"on {held.pop()} held by pid" in (found[0].detail or "")


@pytest.fixture
def prepared(server: BarePostgres) -> Iterator[str]:
    """Return a database in which a prepared transaction holds a lock."""
    name = fresh("prepared")
    server.do("CREATE DATABASE {}", name)
    with server.connect(name) as session:
        session.execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'kept'")
    yield name
    server.sql("ROLLBACK PREPARED 'kept'", database=name)


async def test_a_lock_of_a_prepared_transaction_is_told_too(prepared: str, server: BarePostgres) -> None:
    """K-12: nobody is connected who holds it."""
    failure = await failed(server, wanted(databases=[(prepared, "cloud_admin")]))
    assert failure.detail == "it waited for RowExclusiveLock on pg_default_acl held by prepared transaction 'kept'"


async def test_a_statement_that_ends_by_its_own_limit_while_it_waits_tells_the_lock(server: BarePostgres) -> None:
    """K-12: also where our patience for statements is shorter than that for locks."""
    name = fresh("limited")
    server.do("CREATE DATABASE {}", name)
    with server.connect(name) as holder:
        holder.execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE")
        deadlines = Deadlines(catalog_lock=30, catalog_statement=1)
        failure = await failed(server, wanted(databases=[(name, "cloud_admin")]), deadlines)
    assert failure.sqlstate == "57014"
    assert "on pg_default_acl held by pid" in (failure.detail or "")


async def test_an_object_without_a_table_is_told_by_its_number(server: BarePostgres) -> None:
    """K-12: a subscription that a user keeps locked."""
    name, subscription = fresh("subscribed"), fresh("sub")
    server.do("CREATE DATABASE {}", name)
    server.do(
        "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect=false, slot_name=NONE)",
        subscription,
        database=name,
    )
    delta = [{"action": "delete_db", "name": name}]
    with server.connect(name) as holder:
        holder.execute(f"BEGIN; COMMENT ON SUBSCRIPTION {subscription} IS 'a user keeps it'")
        failure = await failed(server, wanted(delta=delta))
        holder.execute("ROLLBACK")
        ((oid,),) = server.sql("SELECT oid::text FROM pg_subscription WHERE subname = %s", subscription)
        assert f"on object {oid} of pg_subscription held by pid" in (failure.detail or "")
        assert (failure.statement or "").startswith(f"ALTER SUBSCRIPTION {subscription} DISABLE")
    await apply(server, wanted(delta=delta))


async def test_a_session_that_sits_in_a_database_does_not_keep_it_from_being_dropped(server: BarePostgres) -> None:
    """§7: with force, also in the middle of a transaction."""
    name = fresh("sat_in")
    server.do("CREATE DATABASE {}", name)
    with server.connect(name) as sitter:
        sitter.execute("BEGIN; CREATE TABLE t ()")
        await apply(server, wanted(delta=[{"action": "delete_db", "name": name}]), deadlines=QUICK)
        with pytest.raises(psycopg.OperationalError):
            sitter.execute("SELECT 1")
    assert not server.exists("database", name)


async def test_prepared_transactions_that_cannot_be_reached_are_told_as_what_is_in_the_way(
    prepared: str, server: BarePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-15: no session in the database, say for want of a place; the failure names the gid, and the apply goes on."""

    def refuse(*_arguments: object) -> None:
        raise PostgresError("no place")

    monkeypatch.setattr(occupants, "open_maintenance", refuse)
    failure = await failed(server, wanted(delta=[{"action": "delete_db", "name": prepared}]))
    assert (failure.sqlstate, failure.database) == ("55006", prepared)
    assert "prepared transaction 'kept'" in (failure.detail or "")
