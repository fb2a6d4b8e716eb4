"""The catalog brought to the wanted state, against the same statements sent by psql, one session per database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from bench import rig
from bench.report import Report, Samples, Stretch, machine, now, stretches, verdict
from trio_compute.db.apply import apply_catalog
from trio_compute.db.connection import open_connection
from trio_compute.db.preview import look_ahead
from trio_compute.db.target import Target
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.model.spec import Database, DeltaOp, Role
from trio_compute.plan.catalog.operations import Operation, Plan
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.settings import Deadlines
from trio_compute.telemetry.logging import set_level
from trio_compute.telemetry.spans import Recorder

SUMMARY = "roles and databases brought to the wanted state, against psql"
DEFAULT_RUNS = 4  # an even number: ours and the floor take turns at being first
WORKERS = 9
NOTHING_LIMIT_MS = 60.0
CREATION_LIMIT = 1.1
PRIVILEGED = "neon_superuser"
TIMELINE = "0" * 32

NOTES = [
    "floor: the statements of our own plan, by psql: one session for the system database, then one for each database",
    "creation and drop: a fresh cluster for the floor, another one for us; psql works alone, we have 9 workers",
    "on tmpfs where there is one: on disk, what the floor wrote slows who comes next",
    "nothing to do: everything from the connect to the close; its floor is psql with one SELECT",
    "sessions: how many connections Postgres counted during an apply that found nothing to do",
]


def run(runs: int) -> Report:
    """Measure and return the report."""
    return rig.run(partial(_run, runs))


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
    return "".join(f"{op.statement}{chr(10) + chr(92) + 'gexec' if op.generates else ';'}\n" for op in kept)


async def _run(runs: int) -> Report:
    set_level("warning")
    samples, recorded = Samples(), list[list[Stretch]]()
    async with rig.open_rig() as stand, stand.on(rig.places()[-1]):
        for number in range(runs):
            await _measure_creation(stand, samples, recorded, ours_first=number % 2 == 0)
            await _measure_changes(stand, samples)
            await _measure_drop(stand, samples)
    figures = [
        samples.result("nothing to do", "ms", against="psql SELECT"),
        samples.result("sessions", "sessions"),
        samples.result("create 1,000 roles, 300 databases", "ms", against="creation by psql"),
        samples.result("change 100 passwords", "ms", against="passwords by psql"),
        samples.result("drop 50 owners in 100 databases", "ms", against="drop by psql"),
    ]
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
        breakdown={"creation, by phase (databases add up)": stretches(recorded)},
        notes=NOTES,
        samples=samples.dump(),
    )


async def _measure_creation(
    stand: rig.Rig, samples: Samples, recorded: list[list[Stretch]], *, ours_first: bool
) -> None:
    wanted = _wanted(1000, 300)
    # Who comes second pays for the memory that the first one filled and freed, so they take turns.
    for is_ours in (ours_first, not ours_first):
        async with _fresh(stand):
            server, spans = _Server(stand), Recorder()
            if is_ours:
                took = await _timed(partial(server.apply, wanted, spans))
                samples.add("create 1,000 roles, 300 databases", took)
                recorded.append(_stretches_of(spans))
            else:
                plan = await server.plan(wanted)
                samples.add_reference("creation by psql", await _timed(partial(server.floor, plan)))


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


async def _measure_changes(stand: rig.Rig, samples: Samples) -> None:
    async with _fresh(stand):
        server, wanted = _Server(stand), _wanted(100, 100)
        await server.apply(wanted)
        for _ in range(5):
            before = await server.sessions()
            samples.add("nothing to do", await _timed(partial(server.apply, wanted)))
            samples.add("sessions", await server.sessions() - before - 1)
            samples.add_reference("psql SELECT", await _timed(partial(server.psql, "SELECT 1;")))
        for number in (1, 2):
            changed = _wanted(100, 100, password=number)
            if number == 1:
                plan = await server.plan(changed)
                samples.add_reference("passwords by psql", await _timed(partial(server.floor, plan)))
            else:
                samples.add("change 100 passwords", await _timed(partial(server.apply, changed)))


async def _measure_drop(stand: rig.Rig, samples: Samples) -> None:
    wanted = _wanted(100, 100)
    leavers = tuple(DeltaOp(action="delete_role", name=f"owner-{number}") for number in range(50))
    without = msgspec.structs.replace(wanted, delta=leavers)
    for ours in (False, True):
        async with _fresh(stand):
            server = _Server(stand)
            await server.apply(wanted)
            await server.psql("".join(f'CREATE ROLE "owner-{number}";\n' for number in range(50)))
            tables = "".join(
                f'CREATE TABLE public."t{number}" (id int); ALTER TABLE public."t{number}" OWNER TO "owner-{number}";\n'
                for number in range(50)
            )
            for database in wanted.databases:
                await server.psql(tables, database.name)
            if ours:
                samples.add("drop 50 owners in 100 databases", await _timed(partial(server.apply, without)))
            else:
                plan = await server.plan(without)
                samples.add_reference("drop by psql", await _timed(partial(server.floor, plan)))


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
