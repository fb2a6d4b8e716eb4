"""When the catalog cannot be applied: what is told, what goes on, what is tried again (05 K-07 … K-14, K-26)."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial

import psycopg
import pytest
import trio

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.plan.catalog.failures import CatalogFailed

pytestmark = pytest.mark.postgres

IMPATIENT = Deadlines(catalog_lock=1, catalog_statement=5, catalog_retry=3, catalog_total=30)


async def test_what_concerns_the_cluster_stops_at_its_first_error_and_names_it(server: BarePostgres) -> None:
    """K-07: nothing later is executed."""
    later, name = fresh("later"), fresh("database")
    groups = [{"name": "IN ROLE", "value": "nobody_at_all", "vartype": "string"}]
    first = {"name": fresh("first"), "encrypted_password": None, "options": groups}
    with pytest.raises(CatalogFailed, match=r'role "nobody_at_all" does not exist \(SQLSTATE 42704\)') as raised:
        await apply(server, wanted([first, later], [(name, "cloud_admin")]))
    assert [failure.phase for failure in raised.value.failures] == ["CreateAndAlterRoles"]
    assert raised.value.concerns_cluster
    assert not server.exists("role", later)
    assert not server.exists("database", name)


async def test_a_database_that_cannot_be_made_is_its_own_problem(server: BarePostgres) -> None:
    """T-08: it is named, nothing more is tried with it, and the others are made."""
    first, later = fresh("first"), fresh("later")
    with pytest.raises(CatalogFailed) as raised:
        await apply(server, wanted(databases=[(first, "nobody_at_all"), (later, "cloud_admin")]))
    told = [(failure.phase, failure.database) for failure in raised.value.failures]
    assert told == [("CreateAndAlterDatabases", first)]
    assert not raised.value.concerns_cluster
    assert server.exists("database", later)


async def test_each_database_that_fails_is_told_and_the_others_are_done(server: BarePostgres) -> None:
    """K-08: awaited, not abandoned; a repeat finishes the work."""
    owner, names = fresh("owner"), [fresh("many") for _ in range(4)]
    await apply(server, wanted([owner], [(name, owner) for name in names]))
    other = fresh("other")
    holders = [server.connect(name) for name in names[:2]]
    try:
        for holder in holders:
            holder.execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE")
        state = wanted([owner, other], [(name, other) for name in names])
        with pytest.raises(CatalogFailed) as raised:
            await apply(server, state, deadlines=IMPATIENT)
        assert {failure.database for failure in raised.value.failures} == {*names[:2]}
        assert {failure.sqlstate for failure in raised.value.failures} == {"55P03"}
    finally:
        for holder in holders:
            holder.close()
    await apply(server, state)
    assert (await apply(server, state)).is_empty


async def test_a_lock_held_for_longer_than_our_patience_is_told_with_its_holder(server: BarePostgres) -> None:
    """K-12: which lock, and who has it."""
    owner, name = fresh("owner"), fresh("locked")
    await apply(server, wanted([owner], [(name, owner)]))
    other = fresh("other")
    with server.connect(name, application_name="long report") as holder:
        holder.execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CatalogFailed) as raised:
            await apply(server, wanted([owner, other], [(name, other)]), deadlines=IMPATIENT)
    detail = raised.value.failures[0].detail or ""
    assert "on pg_default_acl held by pid" in detail
    assert "application 'long report'" in detail


async def test_a_template_in_use_is_waited_for(server: BarePostgres) -> None:
    """K-26: CREATE DATABASE fails with 55006 while somebody is connected to template1."""
    session = server.connect("template1")
    closer = threading.Timer(6.5, session.close)  # Postgres itself waits five seconds before it gives up
    closer.start()
    try:
        patient = Deadlines(catalog_retry=30)
        await apply(server, wanted(databases=[(fresh("patient"), "cloud_admin")]), deadlines=patient)
    finally:
        closer.join()


async def test_a_free_connection_is_waited_for(server: BarePostgres) -> None:
    """K-10: 53300 for a moment is no failure, for longer it is one that says so."""
    held = []
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while len(held) < 100:
                held.append(server.connect())
        with pytest.raises(PostgresError, match="53300"):
            await apply(server, wanted(), deadlines=Deadlines(catalog_retry=0.3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(apply, server, wanted([fresh("late")]), deadlines=QUICK))
            await trio.sleep(0.3)  # let it be refused at least once
            while held:
                held.pop().close()
    finally:
        for session in held:
            session.close()


async def test_the_old_superuser_makes_the_new_one(server: BarePostgres) -> None:
    """K-11, D-41: a cluster without the superuser that we work as gets it, in one transaction."""
    server.sql("CREATE ROLE zenith_admin SUPERUSER LOGIN")
    server.sql("CREATE ROLE spare SUPERUSER LOGIN")
    try:
        server.sql("ALTER ROLE cloud_admin RENAME TO was_admin", user="spare")
        plan = await apply(server, wanted([fresh("after_fallback")]))
        assert not plan.is_empty
        query = "SELECT rolsuper, rolcanlogin FROM pg_roles WHERE rolname = 'cloud_admin'"
        assert server.sql(query, user="spare") == [(True, True)]
    finally:
        server.sql("REASSIGN OWNED BY cloud_admin TO was_admin; DROP OWNED BY cloud_admin", user="spare")
        server.sql("DROP ROLE cloud_admin", user="spare")
        server.sql("ALTER ROLE was_admin RENAME TO cloud_admin", user="spare")
        server.sql("DROP ROLE zenith_admin; DROP ROLE spare")


async def test_a_cancelled_apply_leaves_nothing_running_and_a_repeat_finishes(server: BarePostgres) -> None:
    """At any moment: the sessions are gone, the lock is free, the next apply converges."""
    owner = fresh("owner")
    state = wanted([owner], [(fresh("cut"), owner) for _ in range(6)])
    for seconds in (0.01, 0.03, 0.06, 0.1, 0.15, 0.2):
        with trio.move_on_after(seconds):
            await apply(server, state)
        query = "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'compute_ctl:apply_config'"
        deadline = time.monotonic() + 5
        while server.sql(query) != [(0,)]:
            assert time.monotonic() < deadline, "a session is left"
            await trio.sleep(0.01)
    await apply(server, state)
    assert (await apply(server, state)).is_empty


async def test_databases_that_allow_no_connections_are_passed_over(server: BarePostgres) -> None:
    """§8 skip rule: a warning, no connection, no error."""
    name = fresh("closed")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    server.do("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    owner = fresh("owner")
    plan = await apply(server, wanted([owner], [(name, owner)]))
    assert plan.warnings == (f"database {name!r} allows no connections; nothing is done inside it",)


@pytest.mark.slow
async def test_postgres_that_goes_away_in_the_middle_is_an_error_and_a_repeat_converges(server: BarePostgres) -> None:
    """K-13: a broken connection never passes for an empty catalog."""
    owner = fresh("owner")
    state = wanted([owner], [(fresh("restart"), owner) for _ in range(8)])
    failures: list[PostgresError] = []

    async def fail() -> None:
        try:
            await apply(server, state)
        except PostgresError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        while not server.exists("database", state.databases[0].name):
            await trio.sleep(0.005)  # Postgres tells nobody
        await trio.to_thread.run_sync(server.stop)
    assert len(failures) == 1
    server.start()
    await apply(server, state)
    assert (await apply(server, state)).is_empty


async def test_secrets_are_in_no_error(server: BarePostgres) -> None:
    """K-33: neither statement nor password, whatever fails."""
    role = {"name": fresh("both"), "encrypted_password": "ab" * 16}
    server.sql("CREATE ROLE blocked_group")
    options = [{"name": "IN ROLE", "value": "no_such_group", "vartype": "string"}]
    with pytest.raises(CatalogFailed) as raised:
        await apply(server, wanted([{**role, "options": options}]))
    assert "ab" * 16 not in str(raised.value)
    assert "no_such_group" in str(raised.value)
