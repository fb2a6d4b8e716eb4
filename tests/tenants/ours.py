"""All that the compute does in SQL, through the one object by which it reaches the world: `ports.Host`."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import trio
from msgspec import structs

from tests.fakes.specs import parsed, settings
from tests.tenants.ground import Ground
from trio_compute.deadlines import Deadlines
from trio_compute.errors import PostgresError
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.preview import PhaseView
from trio_compute.ports import Host
from trio_compute.services.schema_dumps import begin_schema_dump
from trio_compute.telemetry.spans import Recorder

QUICK = Deadlines(
    catalog_lock=5, catalog_statement=9, catalog_retry=8, catalog_total=60, request_total=10, monitor_statement=5
)


class Ours:
    """Do what a compute does, from one database of one server."""

    def __init__(self, ground: Ground, system: str, *, deadlines: Deadlines = QUICK, lakebase: bool = False) -> None:
        self.ground, self.system = ground, system
        self.host = Host(
            structs.replace(
                settings(
                    connstr=ground.url(system),
                    pgdata=ground.data,
                    pgbin=str(ground.tree / "bin" / "postgres"),
                    deadlines=deadlines,
                ),
                lakebase_mode=lakebase,
            )
        )

    def spec(
        self,
        roles: Sequence[str] = (),
        databases: Sequence[tuple[str, str]] = (),
        delta: Sequence[dict[str, Any]] = (),
        **changes: Any,
    ) -> ParsedSpec:
        """Return a spec with some roles, all with the password of this ground, and databases with their owners."""
        cluster = {
            "roles": [self.ground.role(name) for name in roles],
            "databases": [{"name": name, "owner": owner} for name, owner in databases],
            "settings": changes.pop("settings", None),
        }
        # What was done for one timeline is done for all tests of a server.
        changes = {"timeline_id": uuid.uuid4().hex, **changes}
        return parsed(cluster=cluster, delta_operations=list(delta) or None, **changes)

    async def apply(self, spec: ParsedSpec, *, is_start: bool = False) -> None:
        """Bring the catalog to the wanted state; raise PostgresError with all failures."""
        await self.host.apply_catalog(spec, Recorder(), is_start=is_start)

    async def left_to_do(self, spec: ParsedSpec) -> list[PhaseView]:
        """Return what an apply would do to the catalog now."""
        preview = await self.host.preview(spec, None)
        msgspec.json.encode(preview)
        return preview.phases

    async def dump(self, database: str) -> str:
        """Return the schema of a database as `/database_schema` does; raise PostgresError."""
        chunks: list[bytes] = []
        failure: PostgresError | None = None
        async with trio.open_nursery() as nursery:
            errands = SimpleNamespace(begin=nursery.start_soon)
            life: Any = SimpleNamespace(host=self.host, errands=errands)
            try:
                dump = await begin_schema_dump(life, database)
                try:
                    chunks += [chunk async for chunk in dump]
                finally:
                    await dump.aclose()
            except PostgresError as error:
                failure = error
        if failure is not None:
            raise failure
        return b"".join(chunks).decode(errors="replace")

    async def list(self) -> bytes:
        """Return roles and databases as an answer does."""
        return msgspec.json.encode(await self.host.list_catalog())

    async def list_statements(self) -> bytes:
        """Return the slowest statements as an answer does."""
        return msgspec.json.encode(await self.host.collect_insights())

    async def reload(self) -> None:
        """Let Postgres read its files again and see what came of it."""
        from trio_compute.db.reload import reload_and_check

        pid = int((self.ground.data / "postmaster.pid").read_text().split()[0])
        settings = self.host.settings
        await reload_and_check(settings.connstr, settings.deadlines, lambda: self.ground.kill(pid, signal.SIGHUP))

    async def watch(self) -> None:
        """Look at what goes on, both ways."""
        async with self.host.open_watch() as watch:
            await watch.look(statistics=True)
            await watch.look(statistics=False)

    async def use_cache(self) -> None:
        """Save and load the local file cache."""
        async with self.host.open_cache_session("prewarm") as session:
            await session.info()
            await session.state()
            with contextlib.suppress(PostgresError):  # it is not a state
                await session.load(b"\0" * 16)

    async def look_at_promotion(self) -> None:
        """Do the steps of a promotion that change nothing on a primary."""
        async with self.host.open_promotion_session() as session:
            await session.replayed()
            await session.is_read_only()
            await session.reset(replaced_only=True)


async def failure_of(doing: Awaitable[object]) -> PostgresError | None:
    """Return with which error something ends that may fail, or None."""
    try:
        await doing
    except PostgresError as error:
        return error
    return None


def deleted(*roles: str) -> list[dict[str, str]]:
    """Return the delta operations that delete roles."""
    return [{"action": "delete_role", "name": role} for role in roles]


Steps = dict[str, Callable[[Ours, str], Awaitable[object]]]
# Every route and errand that speaks SQL beside the apply itself; the word is a database of a tenant.
ROUTES: Steps = {
    "migrations": lambda ours, _: ours.host.run_migrations(),
    "neon-upgrade": lambda ours, _: ours.host.upgrade_neon_extension(),
    "writability": lambda ours, _: ours.host.check_writability(),
    "insights": lambda ours, _: ours.list_statements(),
    "listing": lambda ours, _: ours.list(),
    "statistics": lambda ours, _: ours.host.collect_installed_extensions(),
    "install-trusted": lambda ours, app: ours.host.install_extension(app, "citext", "1.6"),
    "install-untrusted": lambda ours, app: ours.host.install_extension(app, "pageinspect", "1.9"),
    "grants": lambda ours, app: ours.host.grant_on_schema(app, "public", "pg_monitor", ["CREATE", "USAGE"]),
    "dump": lambda ours, app: ours.dump(app),
    "reload": lambda ours, _: ours.reload(),
    "watch": lambda ours, _: ours.watch(),
    "cache": lambda ours, _: ours.use_cache(),
    "promotion": lambda ours, _: ours.look_at_promotion(),
}


async def ask_all(ours: Ours, app: str, *, but: Iterable[str] = ()) -> dict[str, Exception]:
    """Ask every route in turn; return those that failed, and how."""
    failures: dict[str, Exception] = {}
    for name, ask in ROUTES.items():
        if name not in but:
            try:
                await ask(ours, app)
            except Exception as error:  # noqa: BLE001  (whatever it is, a tenant has caused it)
                failures[name] = error
    return failures
