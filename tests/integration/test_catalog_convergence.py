"""An apply that breaks anywhere, then a repeat, end where an undisturbed one does (contract 05 K-12, K-29, K-34)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from msgspec import structs

from tests.integration.bare_postgres import QUICK, BarePostgres, apply, fresh, wanted
from trio_compute.db import apply as applying
from trio_compute.db.catalog_snapshot import read_snapshot
from trio_compute.db.maintenance import maintenance_target, open_maintenance
from trio_compute.db.preview import look_ahead
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model.spec import ComputeAudit
from trio_compute.plan.catalog.failures import CatalogFailed
from trio_compute.plan.catalog.operations import Operation
from trio_compute.plan.catalog.planner import plan_catalog
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

pytestmark = pytest.mark.postgres

ROLES = """\
SELECT rolname::text, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
       rolconnlimit, rolpassword,
       ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
             WHERE m.member = a.oid ORDER BY 1)
FROM pg_authid a WHERE rolname LIKE %s ORDER BY 1"""
DATABASES = """\
SELECT datname::text, r.rolname::text, datacl::text FROM pg_database d JOIN pg_roles r ON r.oid = datdba
WHERE datname LIKE %s ORDER BY 1"""
INSIDE = """\
SELECT (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'),
       (SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'),
       ARRAY(SELECT relname || ':' || relowner::regrole::text || coalesce(relacl::text, '')
             FROM pg_class WHERE relname LIKE 'theirs%%' ORDER BY 1),
       ARRAY(SELECT defaclrole::regrole::text || defaclobjtype::text || defaclacl::text FROM pg_default_acl ORDER BY 1),
       (SELECT count(*)::int FROM pg_subscription)"""


class Case:
    """Name everything after one word, so that outcomes can be compared once that word is replaced."""

    def __init__(self, server: BarePostgres) -> None:
        self.server, self.word = server, fresh("case")

    def name(self, suffix: str) -> str:
        return f"{self.word}_{suffix}"

    async def set_up(self) -> None:
        n, server = self.name, self.server
        first = wanted(
            [n("leaver"), {"name": n("old"), "encrypted_password": "0f" * 16}, n("stays")],
            [
                (n("doomed"), n("leaver")),
                (n("before"), n("old")),
                (n("unlisted"), n("leaver")),
                (n("kept"), n("stays")),
            ],
            privileged_role=n("super"),
        )
        await apply(server, first)
        for place in ("unlisted", "kept", "before"):
            server.do("CREATE TABLE public.theirs (id int)", database=n(place))
            server.do("ALTER TABLE public.theirs OWNER TO {}", n("leaver"), database=n(place))
            server.do("CREATE TABLE public.theirs_too (id int)", database=n(place))
            server.do("ALTER TABLE public.theirs_too OWNER TO {}", n("stays"), database=n(place))
            server.do("GRANT ALL ON public.theirs_too TO {}", n("leaver"), database=n(place), user=n("stays"))
        server.do(
            "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p "
            "WITH (connect = false, slot_name = NONE)",
            n("sub"),
            database=n("doomed"),
        )
        server.do("REVOKE ALL ON DATABASE {} FROM {}", n("kept"), n("super"))
        server.do("ALTER ROLE {} NOBYPASSRLS", n("super"))

    @property
    def state(self) -> Wanted:
        n = self.name
        delta = [
            {"action": "rename_role", "name": n("old"), "new_name": n("new")},
            {"action": "delete_db", "name": n("doomed")},
            {"action": "rename_db", "name": n("before"), "new_name": n("after")},
            {"action": "delete_role", "name": n("leaver")},
        ]
        roles = [n("stays"), {"name": n("new"), "encrypted_password": "0e" * 16}, n("fresh")]
        databases = [(n("after"), n("new")), (n("kept"), n("fresh")), (n("made"), n("fresh"))]
        return wanted(roles, databases, delta, privileged_role=n("super"))

    def outcome(self) -> list[Any]:
        databases = self.server.sql(DATABASES, f"{self.word}\\_%")
        inside = [self.server.sql(INSIDE, database=name) for name, *_ in databases]
        found = [self.server.sql(ROLES, f"{self.word}\\_%"), databases, inside]
        return [re.sub(r"roles_\d+", "roles", repr(part)).replace(self.word, "case") for part in found]

    def remove(self) -> None:
        for name, *_ in self.server.sql(DATABASES, f"{self.word}\\_%"):
            self.server.do("DROP DATABASE {} WITH (FORCE)", name)


async def test_a_repeat_ends_where_an_undisturbed_apply_does(
    server: BarePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Case(server)
    await straight.set_up()
    plan = (await look_ahead(server.url(), straight.state, [], deadlines=QUICK)).plan
    total = sum(len(phase.operations) for _, phase in plan.located())
    await apply(server, straight.state)
    assert (await apply(server, straight.state)).is_empty
    expected = straight.outcome()
    straight.remove()
    assert total > 20
    run = applying._run
    for cut in range(0, total, 2):
        case, left = Case(server), [cut]
        await case.set_up()

        async def run_some(connection: Any, operation: Operation, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:  # the session breaks, as when Postgres or we are killed
                connection.pgconn.finish()
            await run(connection, operation)

        monkeypatch.setattr(applying, "_run", run_some)
        with pytest.raises(CatalogFailed):
            await apply(server, case.state, workers=1)
        monkeypatch.setattr(applying, "_run", run)
        await apply(server, case.state)
        assert case.outcome() == expected, f"cut after {cut} operations"
        assert (await apply(server, case.state)).is_empty
        case.remove()


async def look(server: BarePostgres, state: Wanted) -> Snapshot:
    async with open_maintenance(maintenance_target(server.url(), "plan", QUICK), QUICK) as connection:
        return await read_snapshot(connection, state)


def without_oid(facts: DatabaseFacts) -> DatabaseFacts:
    """Return facts that do not hang on numbers which nobody can predict, as those in the names of heirs."""
    return structs.replace(facts, oid=0, heir=None if facts.heir is None else "an heir")


def as_predicted(snapshot: Snapshot, privileged_role: str) -> Any:
    """Return what a plan promises: of ordinary roles it knows the passwords only; footholds serve the planning."""
    privileged = snapshot.roles[privileged_role]
    return (
        {name: facts.password for name, facts in snapshot.roles.items()},
        (privileged.attributes, privileged.member_of),
        {name: without_oid(facts) for name, facts in snapshot.databases.items()},
        (snapshot.extensions, snapshot.schemas.keys(), snapshot.former_tables.keys(), snapshot.audit_silenced),
        (snapshot.dropped_subscriptions_of, snapshot.monitor_grants, snapshot.write_check),
    )


@pytest.mark.parametrize("is_lakebase", [False, True])
async def test_what_a_plan_predicts_is_what_is_there_afterwards(is_lakebase: bool, server: BarePostgres) -> None:
    """K-34: so that a preview can be believed, and later phases rest on what is true."""
    case = Case(server)
    await case.set_up()
    state = structs.replace(
        case.state, audit=ComputeAudit.BASE, drop_subscriptions=True, timeline_id=f"{case.word:a>32}"
    )
    state = structs.replace(state, lakebase=is_lakebase)
    before = await look(server, state)
    plan, predicted = plan_catalog(state, before)
    assert not plan.is_empty
    await apply(server, state)
    found = await look(server, state)
    assert as_predicted(found, case.name("super")) == as_predicted(predicted, case.name("super"))
    assert plan_catalog(state, found)[0].is_empty
    case.remove()
    server.sql("ALTER DATABASE postgres RESET ALL; DROP FUNCTION IF EXISTS public.health_check_write_succeeds()")
    for name in ("monitor", "control_plane", "gateway") if is_lakebase else ():
        server.sql(f"DROP OWNED BY databricks_{name}; DROP ROLE databricks_{name}")


async def test_a_cancellation_while_something_runs_cancels_it_on_the_server(server: BarePostgres) -> None:
    """§2.3: the statement that waits for a lock is gone, not only our interest in it."""
    owner, name = fresh("owner"), fresh("held")
    await apply(server, wanted([owner], [(name, owner)]))
    heir = fresh("heir")
    query = "SELECT count(*)::int FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    with server.connect(name) as holder:
        holder.execute("BEGIN; LOCK TABLE pg_default_acl IN ACCESS EXCLUSIVE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, server, wanted([owner, heir], [(name, heir)]))
            while server.sql(query, name) == [(0,)]:
                await trio.sleep(0.01)  # Postgres tells nobody
            nursery.cancel_scope.cancel()
        ours = "SELECT count(*)::int FROM pg_stat_activity WHERE application_name LIKE 'compute\\_ctl%'"
        with trio.fail_after(5):
            while server.sql(ours) != [(0,)]:
                await trio.sleep(0.01)
        locks = "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory'"
        assert server.sql(locks) == [(0,)]
    await apply(server, wanted([owner, heir], [(name, heir)]))


async def test_an_apply_that_takes_too_long_as_a_whole_is_a_failure_that_says_so(server: BarePostgres) -> None:
    """K-12: the overall deadline."""
    with server.connect() as holder:
        holder.execute("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(PostgresError, match=r"not as wanted after 0\.5 s"):
            await apply(server, wanted(), deadlines=Deadlines(catalog_total=0.5))
