"""A role is deleted while it works: what was acknowledged is there afterwards, and belongs to somebody (T-10)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psycopg
import pytest
import trio

from tests.tenants.conftest import ALICE, MALLORY, TRUDY, Place
from tests.tenants.ground import fresh, named
from tests.tenants.hostile import Session
from tests.tenants.ours import deleted
from trio_compute.errors import PostgresError

pytestmark = pytest.mark.postgres

DELETIONS = int(os.environ.get("TRIO_COMPUTE_TENANT_DELETIONS", "3"))  # 200 is the long form
WORKERS = 4
TRIES = 4


class Work:
    """Make tables from several sessions, and remember which ones were acknowledged."""

    def __init__(self, town: Place, leaver: str, how: str) -> None:
        self._town, self._leaver, self._how = town, leaver, how
        self.kept: set[str] = set()
        self._grown = threading.Condition()

    def do(self, worker: int) -> None:
        """Create, grant and drop tables until no session can do it any more."""
        number = 0
        user = {"itself": self._leaver, "as a member": TRUDY, "by a function": ALICE}[self._how]
        with contextlib.suppress(psycopg.Error), self._town.ground.connect(self._town.app, user) as session:
            if self._how == "as a member":
                session.execute(named("SET ROLE {}", self._leaver))
            while True:
                number += 1
                table = f"{self._leaver}_w{worker}_{number}"
                self._create(session, table)
                with self._grown:
                    self.kept.add(table)
                    self._grown.notify_all()
                if self._how != "by a function":
                    self._use(session, table, number)

    def _create(self, session: Session, table: str) -> None:
        if self._how == "by a function":
            session.execute("SELECT public.make(%s)", (table,))
        else:
            session.execute(f"CREATE TABLE public.{table} AS SELECT 1 AS id".encode())

    def _use(self, session: Session, table: str, number: int) -> None:
        session.execute(f"GRANT SELECT ON public.{table} TO {ALICE} WITH GRANT OPTION".encode())
        if number % 5 == 0:
            with self._grown:
                self.kept.discard(table)  # what is being dropped may be there or not
            session.execute(f"DROP TABLE public.{table}".encode())

    def wait_for(self, count: int) -> None:
        """Wait until there is something to lose."""
        with self._grown:
            assert self._grown.wait_for(lambda: len(self.kept) >= count, timeout=30)


@contextlib.contextmanager
def at_work(town: Place, leaver: str, how: str) -> Iterator[Work]:
    work = Work(town, leaver, how)
    workers = [threading.Thread(target=work.do, args=(number,)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        yield work
    finally:
        for worker in workers:
            worker.join(timeout=60)
        assert not any(worker.is_alive() for worker in workers)


async def delete(town: Place, leaver: str) -> None:
    """Delete a role; under load that may take a repetition, as a control plane would try again."""
    for attempt in range(TRIES):
        try:
            await town.ours.apply(town.ours.spec([MALLORY, ALICE], [(town.app, MALLORY)], deleted(leaver)))
            return
        except PostgresError:
            if attempt == TRIES - 1:
                raise


@pytest.mark.slow
@pytest.mark.parametrize("how", ["itself", "as a member", "by a function"])
async def test_no_acknowledged_table_of_a_deleted_role_is_lost(town: Place, how: str) -> None:
    """T-10: 1,550 acknowledged, 318 left, answer 200. Others who act as the role count as much.

    They do so after SET ROLE, which nothing shows from outside, or in a function that runs as its owner.
    """
    for _ in range(DELETIONS):
        leaver = town.ground.make_tenant(fresh("leaver"))
        town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
        town.ground.do("GRANT {} TO {}", leaver, TRUDY)
        if how == "by a function":
            make_function(town, leaver)
        with at_work(town, leaver, how) as work:
            try:
                await trio.to_thread.run_sync(work.wait_for, 20)
                with trio.fail_after(40):
                    await delete(town, leaver)
            finally:
                end_sessions(town)
        assert not town.ground.exists("role", leaver)
        found = town.ground.sql(
            "SELECT relname::text FROM pg_class JOIN pg_roles o ON o.oid = relowner WHERE relkind = 'r'",
            database=town.app,
        )
        assert work.kept - {name for (name,) in found} == set()
        assert ownerless(town) == []
        town.ground.sql("DROP FUNCTION IF EXISTS public.make(text)", database=town.app)
    assert town.judge.gains() == []


def make_function(town: Place, leaver: str) -> None:
    """Let everybody make tables in the name of the leaver."""
    with town.ground.connect(town.app, leaver) as session:
        session.execute(
            "CREATE FUNCTION public.make(name text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS "
            "$$BEGIN EXECUTE format('CREATE TABLE public.%I AS SELECT 1 AS id', name); END$$"
        )


def ownerless(town: Place) -> list[str]:
    """Return what belongs to a role that is gone."""
    query = "SELECT relname::text FROM pg_class WHERE relowner NOT IN (SELECT oid FROM pg_roles)"
    return [name for (name,) in town.ground.sql(query, database=town.app)]


def end_sessions(town: Place) -> None:
    """End what a deletion that failed has left running."""
    town.ground.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", town.app)


async def test_sessions_of_a_deleted_role_do_not_live_on(town: Place) -> None:
    """T-10: nor can it log in again, in any database, while its things change hands."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(town.ground.connect(name, leaver)) for name in ("postgres", town.app)]
        await town.ours.apply(town.spec(delta=deleted(leaver)))
        for session in sessions:
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")


async def test_temporary_objects_of_a_role_do_not_keep_it(town: Place) -> None:
    """T-03, T-10: those of sessions of its own, and those of a session that acts as the role."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT {} TO {}", leaver, TRUDY)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(town.ground.connect(town.app, leaver))
        own.execute(
            "CREATE TEMPORARY TABLE x (id int); CREATE FUNCTION pg_temp.f() "
            "RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
        )
        other = stack.enter_context(town.ground.connect(town.app, TRUDY))
        other.execute(f"SET ROLE {leaver}; CREATE TEMPORARY TABLE y (id int)")
        await delete(town, leaver)
        assert not town.ground.exists("role", leaver)
    query = (
        "SELECT proname::text FROM pg_proc JOIN pg_roles o ON o.oid = proowner WHERE "
        "prosecdef AND rolsuper AND pronamespace::regnamespace::text ~ '^pg_temp'"
    )
    assert town.ground.sql(query, database=town.app) == []


async def test_a_deletion_that_is_cut_anywhere_loses_nothing_and_goes_on(town: Place) -> None:
    """T-10: any cut and any repetition; the sessions of the apply are ended at one moment after another."""
    leaver = town.ground.make_tenant(fresh("leaver"))
    town.ground.do("GRANT ALL ON SCHEMA public TO {}", leaver, database=town.app)
    with town.ground.connect(town.app, leaver) as session:
        for number in range(30):
            session.execute(
                (
                    f"CREATE TABLE public.c{number} AS SELECT {number} AS id; GRANT ALL ON public.c{number} TO trudy"
                ).encode()
            )
    for cut in range(12):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_busy, town, cut)
            with contextlib.suppress(PostgresError):
                await town.ours.apply(town.spec(delta=deleted(leaver)))
            nursery.cancel_scope.cancel()
        if not town.ground.exists("role", leaver):
            break
    await delete(town, leaver)
    query = "SELECT count(*)::int FROM pg_class JOIN pg_roles o ON o.oid = relowner WHERE relname ~ '^c[0-9]+$'"
    assert town.ground.sql(query, database=town.app) == [(30,)]


async def kill_when_busy(town: Place, cut: int) -> None:
    """End our session in the tenant's database after some looks at it; Postgres tells nobody when that is."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'compute_ctl:apply_config' AND datname = ANY (%s)"
    )
    with town.ground.connect() as session:
        seen = 0
        while True:
            watched = [town.app] if cut % 2 else [town.app, town.system]
            found = session.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND application_name ~ '^compute_ctl'",
                (watched[-1],),
            ).fetchone()
            seen += found is not None
            if seen > cut // 2:
                session.execute(query, (watched,))
                return
            await trio.sleep(0.001)
