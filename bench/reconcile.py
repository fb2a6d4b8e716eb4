"""The catalog brought to the wanted state, against the same statements sent by psql, one session per database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio
from msgspec import Struct

from bench import rig
from bench.report import Report, Result, Samples, Stretch, machine, now, stretches, verdict
from trio_compute.db.apply import apply_catalog
from trio_compute.db.connection import open_connection
from trio_compute.db.preview import look_ahead
from trio_compute.db.target import Target
from trio_compute.deadlines import Deadlines
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.model.spec import Database, DeltaOp, Role
from trio_compute.plan.catalog.operations import Operation, Plan
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.telemetry.logging import set_level
from trio_compute.telemetry.spans import Recorder

SUMMARY = "roles and databases brought to the wanted state, against psql"
DEFAULT_RUNS = 4  # an even number: ours and the floor take turns at being first
WORKERS = 9
NOTHING_LIMIT_MS = 60.0
CREATION_LIMIT = 1.1
PRIVILEGED = "neon_superuser"
TIMELINE = "0" * 32


class Sizes(Struct, frozen=True, kw_only=True):
    """Say how many of each there are; smaller ones show only that the bench itself works."""

    created_roles: int = 1000
    created_databases: int = 300
    roles: int = 100
    databases: int = 100
    leavers: int = 50


FULL = Sizes()

NOTES = [
    "floor: the statements of our own plan, by psql: one session for the system database, then one for each database",
    "creation, passwords, drop: a fresh cluster for the floor and one for us, each first in half of the runs",
    "psql works in one database after another, we have 9 workers",
    "on tmpfs where there is one: on disk, what the floor wrote slows who comes next",
    "nothing to do: everything from the connect to the close; its floor is psql with one SELECT",
    "sessions: how many connections Postgres counted during an apply that found nothing to do",
]


def run(runs: int, sizes: Sizes = FULL) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs, sizes))


class _Server:
    """Reach one running Postgres, by psql and by us."""

    def __init__(self, stand: rig.Rig) -> None:
        self._psql = str(stand.world.real_bin / "psql")
        self._port = stand.ports.postgres
        self.connstr = f"postgresql://{SUPERUSER}@127.0.0.1:{self._port}/postgres"

    async def psql(self, script: str, database: str = "postgres") -> None:
        """Run a script in one session."""
        flags = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]
        command = [self._psql, *flags, "-h", "127.0.0.1", "-p", str(self._port), "-U", SUPERUSER, "-d", database]
        await trio.run_process(command, stdin=script.encode())

    async def apply(self, wanted: Wanted, spans: Recorder | None = None) -> None:
        """Apply as a compute does."""
        spans = spans or Recorder()
        await apply_catalog(self.connstr, wanted, workers=WORKERS, deadlines=Deadlines(), spans=spans)

    async def plan(self, wanted: Wanted) -> Plan:
        """Return what there is to do."""
        return (await look_ahead(self.connstr, wanted, [], deadlines=Deadlines())).plan

    async def floor(self, plan: Plan) -> None:
        """Send the statements of a plan by psql."""
        await self.psql(_script(op for phase in plan.before for op in phase.operations))
        for work in plan.databases:
            await self.psql(_script(op for phase in work.phases for op in phase.operations), work.database)
        await self.psql(_script(op for phase in plan.after for op in phase.operations))

    async def sessions(self) -> int:
        """Return how many sessions there ever were, this one left out."""
        async with open_connection(Target.parse(self.connstr)) as connection:
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            cursor = await connection.execute("SELECT sum(sessions)::int FROM pg_stat_database")
            row = await cursor.fetchone()
        return int(row[0]) if row else 0


def _script(operations: Iterable[Operation]) -> str:
    # What a condition would skip here, psql is not told to do: a fresh public belongs to pg_database_owner.
    kept = (op for op in operations if not op.statement.startswith("ALTER SCHEMA public"))
    return "".join(f"{op.statement}{chr(10) + chr(92) + 'gexec' if op.each else ';'}\n" for op in kept)


async def _run(runs: int, sizes: Sizes) -> Report:
    set_level("warning")
    measured = _Measured(sizes)
    async with rig.open_rig() as stand, stand.on(rig.places()[-1]):
        for number in range(runs):
            # Who comes second pays for the memory that the first one filled and freed, so they take turns.
            order = (True, False) if number % 2 == 0 else (False, True)
            for is_ours in order:
                await measured.creation(stand, is_ours=is_ours)
            await measured.nothing(stand)
            for is_ours in order:
                await measured.passwords(stand, is_ours=is_ours)
            for is_ours in order:
                await measured.drop(stand, is_ours=is_ours)
    figures = measured.figures()
    aims = [
        verdict(
            f"nothing to do ≤ {NOTHING_LIMIT_MS:g} ms, the connect included", figures[0].ours, NOTHING_LIMIT_MS, "ms"
        ),
        verdict("nothing to do: one session", figures[1].ours, 1, "sessions"),
        verdict(f"creation ≤ {CREATION_LIMIT} × floor", figures[2].ratio or 0, CREATION_LIMIT, "×"),
    ]
    return Report(
        bench="reconcile",
        date=now(),
        machine=machine(),
        results=figures,
        aims=aims,
        breakdown={
            f"{what}, by phase (databases add up)": stretches(found) for what, found in measured.recorded.items()
        },
        notes=NOTES,
        samples=measured.samples.dump(),
    )


class _Measured:
    """Measure each case for us or for psql, and collect what is found."""

    def __init__(self, sizes: Sizes) -> None:
        self.samples = Samples()
        self.recorded: dict[str, list[list[Stretch]]] = {}
        self._sizes = sizes
        self._creation = f"create {sizes.created_roles:,} roles, {sizes.created_databases} databases"
        self._passwords = f"change {sizes.roles} passwords"
        self._drop = f"drop {sizes.leavers} owners in {sizes.databases} databases"

    def figures(self) -> list[Result]:
        """Return what was measured, the nothing first."""
        return [
            self.samples.result("nothing to do", "ms", against="psql SELECT"),
            self.samples.result("sessions", "sessions"),
            self.samples.result(self._creation, "ms", against=f"{self._creation} by psql"),
            self.samples.result(self._passwords, "ms", against=f"{self._passwords} by psql"),
            self.samples.result(self._drop, "ms", against=f"{self._drop} by psql"),
        ]

    async def creation(self, stand: rig.Rig, *, is_ours: bool) -> None:
        """Make all roles and databases on a new cluster."""
        async with _fresh(stand):
            wanted = _wanted(self._sizes.created_roles, self._sizes.created_databases)
            await self._measure(_Server(stand), self._creation, wanted, is_ours=is_ours)

    async def nothing(self, stand: rig.Rig) -> None:
        """Apply what is there already, over and over."""
        async with _fresh(stand):
            server, wanted = _Server(stand), _wanted(self._sizes.roles, self._sizes.databases)
            await server.apply(wanted)
            for _ in range(5):
                before = await server.sessions()
                self.samples.add("nothing to do", await _timed(partial(server.apply, wanted)))
                self.samples.add("sessions", await server.sessions() - before - 1)
                self.samples.add_reference("psql SELECT", await _timed(partial(server.psql, "SELECT 1;")))

    async def passwords(self, stand: rig.Rig, *, is_ours: bool) -> None:
        """Give every role another password."""
        async with _fresh(stand):
            server = _Server(stand)
            await server.apply(_wanted(self._sizes.roles, self._sizes.databases))
            changed = _wanted(self._sizes.roles, self._sizes.databases, password=1)
            await self._measure(server, self._passwords, changed, is_ours=is_ours)

    async def drop(self, stand: rig.Rig, *, is_ours: bool) -> None:
        """Delete roles, each of which owns a table in every database."""
        wanted, leavers = _wanted(self._sizes.roles, self._sizes.databases), range(self._sizes.leavers)
        delta = tuple(DeltaOp(action="delete_role", name=f"owner-{number}") for number in leavers)
        async with _fresh(stand):
            server = _Server(stand)
            await server.apply(wanted)
            await server.psql("".join(f'CREATE ROLE "owner-{number}";\n' for number in leavers))
            tables = "".join(
                f'CREATE TABLE public."t{number}" (id int); ALTER TABLE public."t{number}" OWNER TO "owner-{number}";\n'
                for number in leavers
            )
            for database in wanted.databases:
                await server.psql(tables, database.name)
            await self._measure(server, self._drop, msgspec.structs.replace(wanted, delta=delta), is_ours=is_ours)

    async def _measure(self, server: _Server, name: str, wanted: Wanted, *, is_ours: bool) -> None:
        if is_ours:
            spans = Recorder()
            self.samples.add(name, await _timed(partial(server.apply, wanted, spans)))
            self.recorded.setdefault(name, []).append(_stretches_of(spans))
        else:
            plan = await server.plan(wanted)
            self.samples.add_reference(f"{name} by psql", await _timed(partial(server.floor, plan)))


def _stretches_of(spans: Recorder) -> list[Stretch]:
    return [
        Stretch(
            name=span.name,
            parent=None,
            start_ms=span.start_seconds * 1000,
            duration_ms=(span.duration_seconds or 0.0) * 1000,
        )
        for span in spans.spans
    ]


@asynccontextmanager
async def _fresh(stand: rig.Rig) -> AsyncIterator[None]:
    """Run Postgres on a freshly unpacked data directory."""
    await stand.unpack_floor()
    async with stand.bare_postgres():
        yield


def _wanted(roles: int, databases: int, *, password: int = 0) -> Wanted:
    key = f"{password:043d}="
    verifier = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0$" + f"{key}:{key}"
    return Wanted(
        privileged_role=PRIVILEGED,
        timeline_id=TIMELINE,
        roles=tuple(Role(name=f"role-{number}", encrypted_password=verifier) for number in range(roles)),
        databases=tuple(Database(name=f"database-{number}", owner="role-0") for number in range(databases)),
    )


async def _timed(function: Callable[[], Awaitable[None]]) -> float:
    began = time.monotonic()
    await function()
    return (time.monotonic() - began) * 1000
