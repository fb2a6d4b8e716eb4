"""An apply that ended anywhere is finished by the next one (contract 05 K-29, K-34; design §5)."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db.preview import look_ahead

pytestmark = pytest.mark.postgres


async def test_an_apply_that_was_cut_after_any_operation_is_finished_by_the_next(server: BarePostgres) -> None:
    cut = 0
    while True:
        owner, leaver, name, doomed = fresh("owner"), fresh("leaver"), fresh("cut"), fresh("doomed")
        privileged = f"cut_admin_{'x' * cut}"
        await apply(server, wanted([leaver], [(doomed, leaver)], privileged_role=privileged))
        server.do("ALTER ROLE {} NOBYPASSRLS", privileged)
        delta = [{"action": "delete_db", "name": doomed}, {"action": "delete_role", "name": leaver}]
        state = wanted([owner], [(name, owner)], delta, privileged_role=privileged)
        plan = (await look_ahead(server.url(), state, [], deadlines=QUICK)).plan
        operations = [(database, each) for database, phase in plan.located() for each in phase.operations]
        if cut > len(operations):
            return
        for database, operation in operations[:cut]:
            place = database or "postgres"
            holds = operation.only_if is None or server.sql(operation.only_if, database=place)
            found = server.sql(operation.statement, database=place) if holds else []
            for (statement,) in found if operation.each else ():
                server.sql(statement, database=place)
        await apply(server, state)
        assert (await apply(server, state)).is_empty
        assert server.exists("database", name)
        assert not server.exists("database", doomed)
        assert not server.exists("role", leaver)
        assert server.sql("SELECT has_database_privilege(%s, %s, 'CREATE')", privileged, name) == [(True,)]
        default = "SELECT count(*)::int FROM pg_default_acl WHERE defaclacl::text LIKE '%%' || %s || '=%%'"
        assert server.sql(default, privileged, database=name) == [(2,)]
        cut += 1


@pytest.mark.parametrize("mode", ["", "ALWAYS", "REPLICA"])
async def test_an_event_trigger_of_a_user_does_not_fire_in_our_sessions(mode: str, server: BarePostgres) -> None:
    """T-02: however it is enabled; afterwards it is as it was."""
    owner, other, name = fresh("owner"), fresh("other"), fresh("watched")
    await apply(server, wanted([owner], [(name, owner)]))
    server.sql(
        "CREATE FUNCTION trap() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';"
        "CREATE EVENT TRIGGER trap ON ddl_command_start EXECUTE FUNCTION trap();"
        f"ALTER EVENT TRIGGER trap ENABLE {mode}",
        database=name,
    )
    state = wanted([other], [(name, other)], [{"action": "delete_role", "name": owner}])
    await apply(server, state)
    assert (await apply(server, state)).is_empty
    letter = "SELECT evtenabled::text FROM pg_event_trigger"
    assert server.sql(letter, database=name) == [((mode or "O")[0],)]
    server.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_a_database_with_a_replication_slot_is_deleted(server: BarePostgres) -> None:
    name = fresh("slotted")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    server.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", name, database=name)
    await apply(server, wanted(delta=[{"action": "delete_db", "name": name}]))
    assert not server.exists("database", name)
    assert server.sql("SELECT count(*)::int FROM pg_replication_slots") == [(0,)]


async def test_somebody_who_reads_from_a_replication_slot_does_not_keep_the_database(server: BarePostgres) -> None:
    """§7: deleted with force, though Postgres itself would not end the replication."""
    name = fresh("read")
    await apply(server, wanted(databases=[(name, "cloud_admin")]))
    server.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", name, database=name)
    state = wanted(delta=[{"action": "delete_db", "name": name}])
    with contextlib.closing(server.connect(name, replication="database")) as reader:
        begun = reader.pgconn.exec_(f"START_REPLICATION SLOT {name} LOGICAL 0/0".encode())
        assert begun.status == psycopg.pq.ExecStatus.COPY_BOTH
        await apply(server, state)
    assert not server.exists("database", name)
    assert (await apply(server, state)).is_empty
