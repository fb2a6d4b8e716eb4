"""A world behind the ports that does what it is told, on whatever clock runs."""

from __future__ import annotations

import datetime as dt
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.fakes.cache import FakeCache, FakeEndpointStorage
from tests.fakes.replica import FakeReplica
from trio_compute.db.activity import Watch
from trio_compute.db.reload import ReloadReport
from trio_compute.errors import PostgresError
from trio_compute.host.run_as import RunAs
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Urgency
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.responses import CatalogDatabase, CatalogResponse, CatalogRole
from trio_compute.model.spec import ComputeConfig
from trio_compute.plan.activity import Observation
from trio_compute.plan.activity import Statistics as SessionStatistics
from trio_compute.plan.extension_statistics import Statistics
from trio_compute.plan.lease import LeaseTerms
from trio_compute.plan.preview import Preview
from trio_compute.plan.remote_extensions import Archive
from trio_compute.ports import Host
from trio_compute.postgres.communicator import PostgresMetrics
from trio_compute.postgres.dump_places import DumpPlaces
from trio_compute.postgres.extension_staging import Places
from trio_compute.postgres.installation import Installation
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.postgres.schema_dump import SchemaDump
from trio_compute.postgres.stop import stop_child
from trio_compute.services.life import Life
from trio_compute.settings import Settings
from trio_compute.storage.pageserver import Received

COMMIT_LSN = Lsn.parse("0/16B5A50")


class FakeChild:
    """A process that ends some seconds after a signal, or never."""

    def __init__(self, reactions: dict[signal.Signals, float] | None = None) -> None:
        self.pid = 4711
        self.returncode: int | None = None
        self.reloads = 0
        self.signals: list[tuple[float, signal.Signals]] = []
        self.reactions = {signal.SIGINT: 0.5, signal.SIGQUIT: 0.1} if reactions is None else reactions
        self._end_at = float("inf")
        self._changed = trio.Event()

    def send_signal(self, sig: signal.Signals) -> None:
        if sig is signal.SIGHUP:
            self.reloads += 1
            return
        self.signals.append((trio.current_time(), sig))
        delay = 0.0 if sig is signal.SIGKILL else self.reactions.get(sig, float("inf"))
        self.end(-9 if sig is signal.SIGKILL else 0, delay)

    def end(self, code: int, delay: float = 0.0) -> None:
        if trio.current_time() + delay < self._end_at:
            self._end_at, self._code = trio.current_time() + delay, code
            self._changed.set()
            self._changed = trio.Event()

    async def wait(self) -> int:
        while self.returncode is None:
            changed = self._changed
            with trio.move_on_at(self._end_at):
                await changed.wait()
            if trio.current_time() >= self._end_at and self.returncode is None:
                self.returncode = self._code
        return self.returncode


class FakeWatch:
    """A Postgres to look at: what it shows can be changed, and it may fail or hang instead."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.statistics = SessionStatistics(0.0, 0)
        self.now = dt.datetime(2026, 3, 4, 12, tzinfo=dt.UTC)
        self.failure: Exception | None = None
        self.refusal: Exception | None = None
        self.looks: list[tuple[float, bool]] = []
        self.connections: list[float] = []
        self.look_seconds = 0.0

    async def connect(self) -> None:
        self.connections.append(trio.current_time())
        await trio.sleep(self.look_seconds)
        if self.refusal is not None:
            raise self.refusal

    async def look(self, *, statistics: bool) -> Observation:
        self.looks.append((trio.current_time(), statistics))
        await trio.sleep(self.look_seconds)
        if self.failure is not None:
            raise self.failure
        now = self.now + dt.timedelta(seconds=trio.current_time())
        return Observation(now=now, statistics=self.statistics if statistics else None, **self.seen)


class FakeHost(Host):
    """Every port takes `pace` seconds, fails as scripted in `failures`, and is noted in `calls`."""

    def __init__(self, settings: Settings, config: ComputeConfig, *, pace: float = 0.01) -> None:
        self.settings = settings
        self.config = config
        self.pace = pace
        self.calls: list[str] = []
        self.failures: dict[str, list[Exception | None]] = {}
        self.synced_at: Lsn | None = COMMIT_LSN
        self.slow: dict[str, float] = {}
        self.reload_report = ReloadReport()
        self.child = FakeChild()
        self.open_children = 0
        self.pgdata_in_use = False
        self.fail_next: Exception | None = None
        self.written: list[ParsedSpec] = []
        self.subscribers_stopped = False
        self.installation = Installation(
            "PostgreSQL 17.11", 17, Places(Path("/nowhere/extension"), Path("/nowhere/lib"))
        )
        self.dump_places = DumpPlaces(self.dumps_that_wait)
        self.dumps_at_locks: set[str] = set()
        self.dump_command = ["/bin/echo", "-- a dump"]
        self.databases = {"postgres": "UTF8"}
        self.control_files: list[str] = []
        self.archive_sizes: dict[str, int] = {}
        self.watch = FakeWatch()
        self.statistics: list[Statistics | Exception] = []
        self.collections = 0
        self.has_room = True
        self.insights: list[dict[str, Any]] = []
        self.listing = CatalogResponse(
            [CatalogRole("cloud_admin")], [CatalogDatabase("postgres", "cloud_admin", False, False)]
        )
        self.asked: list[tuple[Any, ...]] = []
        self.endpoint_storage: Any = FakeEndpointStorage()
        self.cache = FakeCache()
        self.replica = FakeReplica()
        self.traces: list[bytes] = []

    async def _port(self, name: str) -> None:
        self.calls.append(name)
        await trio.sleep(self.slow.get(name, self.pace))
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        script = self.failures.get(name)
        if script and (scripted := script.pop(0)) is not None:
            raise scripted

    async def warm_up(self) -> None:
        await self._port("warm_up")

    async def warm_vm_memory(self) -> None:
        await self._port("warm_vm_memory")

    async def obtain_config(self) -> ComputeConfig:
        await self._port("obtain_config")
        return self.config

    async def send_traces(self, payload: bytes) -> None:
        self.traces.append(payload)

    async def recreate_pgdata(self) -> None:
        await self._port("recreate_pgdata")

    async def write_postgresql_conf(self, parsed: ParsedSpec, *, drop_subscriptions: bool = False) -> None:
        await self._port("write_postgresql_conf")
        self.written.append(parsed)
        self.replica.conf = self.render_postgresql_conf(parsed)
        self.subscribers_stopped = drop_subscriptions

    async def enable_subscribers(self) -> bool:
        await self._port("enable_subscribers")
        was_stopped, self.subscribers_stopped = self.subscribers_stopped, False
        return was_stopped

    async def install_certificate(self, parsed: ParsedSpec) -> None:
        await self._port("install_certificate")

    async def write_override(self, text: str) -> None:
        await self._port("lift_quota" if text else "restore_quota")

    async def check_safekeepers(self, parsed: ParsedSpec) -> Lsn | None:
        await self._port("check_safekeepers")
        return self.synced_at

    async def sync_safekeepers(self, parsed: ParsedSpec) -> Lsn:
        assert self.open_children == 0, "a sync beside a running Postgres would evict it"
        await self._port("sync_safekeepers")
        return COMMIT_LSN

    async def fetch_basebackup(self, parsed: ParsedSpec, lsn: Lsn, spans: object) -> Received:
        self.pgdata_in_use = True
        try:
            await self._port("fetch_basebackup")
        finally:
            self.pgdata_in_use = False
        return Received(compressed_bytes=1000, files=3)

    async def request_lsn_lease(self, terms: LeaseTerms) -> float | None:
        await self._port("request_lsn_lease")
        return time.time() + 600

    async def inspect_installation(self) -> Installation:
        await self._port("inspect_installation")
        return self.installation

    async def sweep_extensions(self, places: Places) -> None:
        await self._port("sweep_extensions")

    async def write_control_files(self, files: Sequence[tuple[str, str]], places: Places) -> list[str]:
        await self._port("write_control_files")
        self.control_files = [name for name, _ in files]
        return []

    async def fetch_extension(self, archive: Archive, places: Places) -> int:
        await self._port(f"fetch {archive.extension}")
        return self.archive_sizes.get(archive.extension, 1000)

    async def undoing_options(self, database: str) -> str:
        return ""

    def schema_dump(self, database: str, encoding: str, options: str = "") -> SchemaDump:
        self.calls.append(f"schema_dump {database}")
        limits = self.settings.deadlines
        return SchemaDump(self.dump_command, {}, RunAs(), self.dump_places, limits, name=f"dump of {database}")

    async def dumps_that_wait(self, names: Collection[str]) -> set[str]:
        return self.dumps_at_locks & set(names)

    async def database_encoding(self, database: str) -> str | None:
        await self._port("database_encoding")
        return self.databases.get(database)

    async def check_accepting(self) -> None:
        await self._port("check_accepting")

    async def fetch_postgres_metrics(self) -> PostgresMetrics:
        await self._port("fetch_postgres_metrics")
        raise PostgresError("connecting to communicator control socket: No such file or directory")

    async def clean_pgdata(self) -> None:
        await self._port("clean_pgdata")

    async def complete_pgdata(self, parsed: ParsedSpec) -> None:
        await self._port("complete_pgdata")

    @asynccontextmanager
    async def open_postmaster(self, parsed: ParsedSpec, urgency: Cell[Urgency]) -> AsyncIterator[Postmaster]:
        await self._port("open_postmaster")
        postmaster = Postmaster(self.child, Path("/nowhere"))
        self.open_children += 1
        try:
            yield postmaster
        finally:
            with trio.CancelScope(shield=True):
                postmaster.exit = await stop_child(self.child, urgency, self.settings.deadlines)
                self.open_children -= 1

    async def wait_ready(self, postmaster: Postmaster) -> None:
        await self._port("wait_ready")

    async def apply_catalog(self, parsed: ParsedSpec, spans: object, *, is_start: bool) -> None:
        await self._port("apply_catalog")

    async def preview(self, parsed: ParsedSpec, running: ParsedSpec | None) -> Preview:
        await self._port("preview")
        return Preview(phases=[], warnings=[], settings=[], configuration_diff="", restart_required=[])

    async def run_migrations(self) -> None:
        await self._port("run_migrations")

    async def reload(self, postmaster: Postmaster) -> ReloadReport:
        await self._port("reload")
        return self.reload_report

    async def upgrade_neon_extension(self) -> None:
        await self._port("upgrade_neon_extension")

    @asynccontextmanager
    async def open_watch(self) -> AsyncIterator[Watch]:
        await self.watch.connect()
        yield self.watch

    async def collect_installed_extensions(self) -> Statistics:
        self.collections += 1
        await trio.sleep(self.pace)
        found = self.statistics.pop(0) if self.statistics else Statistics({})
        if isinstance(found, Exception):
            raise found
        return found

    async def check_writability(self) -> bool:
        await self._port("check_writability")
        return self.has_room

    async def collect_insights(self) -> list[dict[str, Any]]:
        await self._port("collect_insights")
        return self.insights

    async def list_catalog(self) -> CatalogResponse:
        await self._port("list_catalog")
        return self.listing

    async def install_extension(self, database: str, name: str, version: str) -> bool:
        self.asked.append((database, name, version))
        await self._port("install_extension")
        return True

    async def grant_on_schema(self, database: str, schema: str, role: str, privileges: Sequence[str]) -> bool:
        self.asked.append((database, schema, role, tuple(privileges)))
        await self._port("grant_on_schema")
        return True

    def open_cache_session(self, purpose: str) -> Any:
        return self.cache.open(purpose)

    def open_promotion_session(self) -> Any:
        return self.replica.open()

    def stop_neighbours(self) -> None:
        self.calls.append("stop_neighbours")

    async def log_backtraces(self) -> None:
        await self._port("log_backtraces")


class FakeServers:
    """Servers without sockets; the test reaches the compute through them."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.drained = trio.Event()
        self.drained_at: float | None = None

    def __call__(self, life: Life, config: ComputeConfig) -> FakeServers:
        self.life = life
        self.compute = life.compute
        self.queue = life.queue
        return self

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        self.ready.set()
        await self.drained.wait()

    def drain(self) -> None:
        self.drained_at = trio.current_time()
        self.drained.set()
