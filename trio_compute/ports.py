"""Everything a compute does to the world outside, in one place, so that tests can put a fake world behind it."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_compute.db.fortress import learn_major
from trio_compute.db.runtime_sql import RuntimeSql
from trio_compute.db.target import Target
from trio_compute.errors import HostError, SpecError
from trio_compute.host.core_dumps import LAKEBASE_DIRECTORY, log_backtraces
from trio_compute.host.files import write_atomically
from trio_compute.host.neighbours import stop_neighbours
from trio_compute.host.run_as import RunAs, resolve_run_as
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Urgency
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import ComputeConfig, TlsConfig
from trio_compute.plan.catalog.wanted import Wanted, wanted_of
from trio_compute.plan.lakebase import lakebase_environ, lakebase_port
from trio_compute.plan.lease import LeaseTerms
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.plan.preconditions import require_startable
from trio_compute.plan.restart import restart_required
from trio_compute.plan.subscriptions import with_subscribers_enabled
from trio_compute.plan.tls import tls_in_use
from trio_compute.postgres import pgdata as data_directory
from trio_compute.postgres.binaries import resolve_pgbin
from trio_compute.postgres.certificate import CERTIFICATE_FILE, KEY_FILE, install_key_pair
from trio_compute.postgres.data_version import major_of
from trio_compute.postgres.postmaster import Postmaster, open_postmaster, wait_ready
from trio_compute.postgres.tools import PostgresTools
from trio_compute.postgres.warm_up import warm_vm_memory
from trio_compute.settings import Settings
from trio_compute.storage.control_plane import obtain_config
from trio_compute.storage.endpoint_storage import EndpointStorage
from trio_compute.storage.pageserver import Received, fetch_basebackup
from trio_compute.storage.safekeepers import check_safekeepers_synced, sync_safekeepers
from trio_compute.storage.trace_collector import send_traces
from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.spans import Recorder

if TYPE_CHECKING:
    from trio_compute.db.cache import CacheSession
    from trio_compute.db.promotion import PromotionSession
    from trio_compute.db.reload import ReloadReport
    from trio_compute.plan.preview import Preview

KEPT_BETWEEN_ATTEMPTS = ("postgresql.conf", KEY_FILE, CERTIFICATE_FILE)


class Host(RuntimeSql, PostgresTools):
    """Reach the real files, processes and storage services."""

    # Taken from the configuration once, at process start (contract 01 §5).
    tls: TlsConfig | None = None

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.started_at = time.time()
        self.run_as: RunAs = resolve_run_as(settings.run_as)
        self.pgbin: Path = resolve_pgbin(settings.pgbin)
        _check_connstr(settings.connstr)
        self.endpoint_storage = EndpointStorage(
            connect_seconds=settings.deadlines.endpoint_storage_connect,
            idle_seconds=settings.deadlines.endpoint_storage_idle,
        )

    async def warm_up(self) -> None:
        """Import the storage clients in a worker thread; they are needed next and take long to load."""
        await trio.to_thread.run_sync(_import_storage_clients)

    async def warm_vm_memory(self) -> None:
        """Touch the memory of a pooled VM."""
        await warm_vm_memory(
            self.pgbin,
            self.settings.pgdata,
            wrapper=self._control_group(),
            environ=self._environ(None),
            run_as=self.run_as,
            deadlines=self.settings.deadlines,
        )

    async def obtain_config(self) -> ComputeConfig:
        """Return the configuration (contract 01 §1.4, §8)."""
        return await obtain_config(self.settings)

    async def send_traces(self, payload: bytes) -> None:
        """Hand encoded spans to the collector; raise RemoteError (contract 10 §8)."""
        await send_traces(payload, self.settings.traces)

    async def recreate_pgdata(self) -> None:
        """Make PGDATA an empty directory."""
        await trio.to_thread.run_sync(data_directory.recreate, self.settings.pgdata, self.run_as)

    def require_startable(self, parsed: ParsedSpec) -> None:
        """Raise SpecError for what would fail this start later, before PGDATA is touched (04 F-19)."""
        require_startable(parsed, self.settings)
        self.render_postgresql_conf(parsed)

    def render_postgresql_conf(self, parsed: ParsedSpec, *, drop_subscriptions: bool = False) -> str:
        """Return the configuration file as it would be written; raise SpecError if it cannot be."""
        return render_postgresql_conf(parsed, self._conf_context(parsed, drop_subscriptions=drop_subscriptions))

    async def write_postgresql_conf(self, parsed: ParsedSpec, *, drop_subscriptions: bool = False) -> None:
        """Write the configuration file as a whole, after the certificate that it names is in place (04 F-02)."""
        text = self.render_postgresql_conf(parsed, drop_subscriptions=drop_subscriptions)
        await self.install_certificate(parsed)
        write_atomically(self.settings.pgdata / "postgresql.conf", text, self.run_as)

    async def enable_subscribers(self) -> bool:
        """Let subscribers run again once subscriptions are dropped; return whether a reload is due (04 F-09)."""
        path = self.settings.pgdata / "postgresql.conf"
        try:
            text = with_subscribers_enabled(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error
        if text is not None:
            write_atomically(path, text, self.run_as)
        return text is not None

    def tls_in_use(self, parsed: ParsedSpec | None) -> TlsConfig | None:
        """Return the files of key and certificate if Postgres serves TLS with them."""
        return None if parsed is None else tls_in_use(parsed.spec, self.tls)

    async def install_certificate(self, parsed: ParsedSpec) -> None:
        """Put key and certificate into PGDATA, if this spec uses them; raise HostError if they do not fit in time."""
        tls = self.tls_in_use(parsed)
        if tls is not None:
            await install_key_pair(tls, self.settings.pgdata, self.run_as, self.settings.deadlines)

    @property
    def installed_certificate(self) -> Path:
        """Return where Postgres finds its certificate."""
        return self.settings.pgdata / CERTIFICATE_FILE

    async def write_override(self, text: str) -> None:
        """Fill or empty the temporary override (contract 04 §6)."""
        write_atomically(self.settings.pgdata / data_directory.OVERRIDE_FILE, text, self.run_as)

    async def check_safekeepers(self, parsed: ParsedSpec) -> Lsn | None:
        """Return the LSN that a quorum of safekeepers agrees on, if it does."""
        return await check_safekeepers_synced(parsed, timeout_seconds=self.settings.deadlines.safekeeper_check)

    async def sync_safekeepers(self, parsed: ParsedSpec) -> Lsn:
        """Let Postgres sync the safekeepers, once."""
        return await sync_safekeepers(
            [*self._control_group(), str(self.pgbin), "--sync-safekeepers"],
            self.settings.pgdata,
            parsed,
            environ=self._environ(parsed),
            run_as=self.run_as,
            grace_seconds=self.settings.deadlines.sync_safekeepers_stop,
        )

    async def fetch_basebackup(self, parsed: ParsedSpec, lsn: Lsn, spans: Recorder) -> Received:
        """Unpack one basebackup into PGDATA."""
        return await fetch_basebackup(
            parsed,
            self.settings.pgdata,
            lsn,
            run_as=self.run_as,
            spans=spans,
            deadlines=self.settings.deadlines,
        )

    async def request_lsn_lease(self, terms: LeaseTerms) -> float | None:
        """Ask all pageservers to keep an LSN; return until when they do, in Unix seconds, or None if one refuses."""
        from trio_compute.storage.lsn_lease import request_lease

        return await request_lease(terms, connect_seconds=self.settings.deadlines.pageserver_connect)

    async def clean_pgdata(self) -> None:
        """Remove what a failed basebackup left (07 S-06)."""
        pgdata = self.settings.pgdata
        await trio.to_thread.run_sync(lambda: data_directory.empty(pgdata, keep=KEPT_BETWEEN_ATTEMPTS))

    async def complete_pgdata(self, parsed: ParsedSpec) -> None:
        """Add to PGDATA what the basebackup lacks."""
        data_directory.complete_after_basebackup(
            self.settings.pgdata,
            self.run_as,
            is_primary=parsed.is_primary,
            databricks=parsed.spec.databricks_settings,
        )

    def open_postmaster(self, parsed: ParsedSpec, urgency: Cell[Urgency]) -> AbstractAsyncContextManager[Postmaster]:
        """Run Postgres for as long as the block runs."""
        learn_major(Target.parse(self.settings.connstr), major_of(self.settings.pgdata))
        return open_postmaster(
            [*self._control_group(), str(self.pgbin), "-D", str(self.settings.pgdata)],
            self.settings.pgdata,
            environ=self._environ(parsed),
            run_as=self.run_as,
            urgency=urgency,
            deadlines=self.settings.deadlines,
        )

    async def wait_ready(self, postmaster: Postmaster) -> None:
        """Wait until Postgres accepts connections."""
        await wait_ready(postmaster, self.settings.deadlines.postgres_ready)

    async def apply_catalog(self, parsed: ParsedSpec, spans: Recorder, *, is_start: bool) -> None:
        """Bring roles, databases and extensions to the wanted state."""
        from trio_compute.db.apply import apply_catalog
        from trio_compute.plan.catalog.concurrency import workers_at_start, workers_when_running

        workers = (workers_at_start if is_start else workers_when_running)(parsed.spec)
        await apply_catalog(
            self.settings.connstr,
            self._wanted(parsed),
            workers=workers,
            deadlines=self.settings.deadlines,
            spans=spans,
        )

    def _wanted(self, parsed: ParsedSpec) -> Wanted:
        return wanted_of(
            parsed, privileged_role=self.settings.privileged_role_name, lakebase=self.settings.lakebase_mode
        )

    async def preview(self, parsed: ParsedSpec, running: ParsedSpec | None) -> Preview:
        """Return what applying a spec would do now; nothing is changed. Raises SpecError or PostgresError."""
        from trio_compute.db.preview import look_ahead
        from trio_compute.plan.conf_diff import changed_settings
        from trio_compute.plan.preview import preview_of

        old = (self.settings.pgdata / "postgresql.conf").read_text(encoding="utf-8", errors="replace")
        new = self.render_postgresql_conf(parsed)
        touches_catalog = parsed.is_primary and not parsed.spec.skip_pg_catalog_updates
        outlook = await look_ahead(
            self.settings.connstr,
            self._wanted(parsed) if touches_catalog else None,
            changed_settings(old, new),
            deadlines=self.settings.deadlines,
        )
        fields = restart_required(running, parsed) if running is not None else []
        return preview_of(
            outlook.plan,
            outlook.system_database,
            old_conf=old,
            new_conf=new,
            restart_required=[*fields, *outlook.start_only],
            hide=redact,
            warnings=parsed.warnings,
        )

    async def run_migrations(self) -> None:
        """Run the one-way changes of the catalog that are still due."""
        from trio_compute.db.migrations import run_migrations

        settings = self.settings
        await run_migrations(
            settings.connstr, privileged_role=settings.privileged_role_name, deadlines=settings.deadlines
        )

    async def reload(self, postmaster: Postmaster) -> ReloadReport:
        """Let Postgres read its files again and return what came of it; raise PostgresError if it cannot be asked."""
        from trio_compute.db.reload import reload_and_check

        return await reload_and_check(self.settings.connstr, self.settings.deadlines, postmaster.reload)

    async def upgrade_neon_extension(self) -> None:
        """Bring the neon extension, where it is installed, to the version of the library."""
        from trio_compute.db.maintenance import (
            maintenance_target,
            open_maintenance,
            upgrade_neon_extension,
        )
        from trio_compute.db.turns import changing

        deadlines = self.settings.deadlines
        target = maintenance_target(self.settings.connstr, "post_apply_config", deadlines)
        async with changing(target), open_maintenance(target, deadlines) as connection:
            await upgrade_neon_extension(connection)

    def open_cache_session(self, purpose: str) -> AbstractAsyncContextManager[CacheSession]:
        """Open a session for the functions of the local file cache; raise PostgresError."""
        from trio_compute.db.cache import open_cache_session

        return open_cache_session(self.settings.connstr, self.settings.deadlines, purpose)

    def open_promotion_session(self) -> AbstractAsyncContextManager[PromotionSession]:
        """Open a session for the steps of a promotion; raise PostgresError."""
        from trio_compute.db.promotion import open_promotion_session

        return open_promotion_session(self.settings.connstr, self.settings.deadlines)

    def stop_neighbours(self) -> None:
        """Stop pgbouncer and local_proxy."""
        stop_neighbours(self.settings)

    async def log_backtraces(self) -> None:
        """Log what core dumps tell."""
        directory = LAKEBASE_DIRECTORY if self.settings.lakebase_mode else self.settings.pgdata
        environ = self._environ(None)
        await log_backtraces(directory, self.pgbin, since=self.started_at, environ=environ, run_as=self.run_as)

    def _control_group(self) -> list[str]:
        return ["cgexec", "-g", f"memory:{self.settings.cgroup}"] if self.settings.autoscaling else []

    def _environ(self, parsed: ParsedSpec | None) -> dict[str, str]:
        environ = dict(self.settings.child_environ)
        if self.run_as.home is not None:
            environ["HOME"] = self.run_as.home
        if parsed is not None and parsed.spec.storage_auth_token is not None:
            environ["NEON_AUTH_TOKEN"] = parsed.spec.storage_auth_token
        if parsed is not None:
            environ |= lakebase_environ(self.settings, parsed.spec.databricks_settings)
        return environ

    def _conf_context(self, parsed: ParsedSpec, *, drop_subscriptions: bool) -> ConfContext:
        return ConfContext(
            privileged_role_name=self.settings.privileged_role_name,
            internal_http_port=self.settings.internal_http_port,
            strict_overcommit=_strict_overcommit(),
            drop_subscriptions=drop_subscriptions,
            tls=self.tls_in_use(parsed) is not None,
            lakebase_port=lakebase_port(self.settings),
        )


def _check_connstr(connstr: str) -> None:
    try:
        Target.parse(connstr)
    except SpecError as error:
        raise SpecError(f"cannot build postgres config from connstr: {error}") from None


def _import_storage_clients() -> None:
    import trio_compute.db.connection
    import trio_compute.postgres.unpack  # noqa: F401


def _strict_overcommit() -> bool:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False
