"""Everything a compute does to the world outside, in one place, so that tests can put a fake world behind it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from trio_compute.db.target import Target
from trio_compute.errors import SpecError
from trio_compute.host.core_dumps import log_backtraces
from trio_compute.host.files import write_atomically
from trio_compute.host.neighbours import stop_neighbours
from trio_compute.host.run_as import RunAs, resolve_run_as
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Urgency
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import ComputeConfig
from trio_compute.plan.lease import LeaseTerms
from trio_compute.plan.postgres_conf import ConfContext, render_postgresql_conf
from trio_compute.postgres import pgdata as data_directory
from trio_compute.postgres.binaries import resolve_pgbin
from trio_compute.postgres.postmaster import Postmaster, open_postmaster, wait_ready
from trio_compute.postgres.warm_up import warm_vm_memory
from trio_compute.settings import Settings
from trio_compute.storage.control_plane import obtain_config
from trio_compute.storage.pageserver import Received, fetch_basebackup
from trio_compute.storage.safekeepers import check_safekeepers_synced, sync_safekeepers
from trio_compute.telemetry.spans import Recorder

KEPT_BETWEEN_ATTEMPTS = ("postgresql.conf", "server.key", "server.crt")


class Host:
    """Reach the real files, processes and storage services."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run_as: RunAs = resolve_run_as(settings.run_as)
        self.pgbin: Path = resolve_pgbin(settings.pgbin)
        _check_connstr(settings.connstr)

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

    async def recreate_pgdata(self) -> None:
        """Make PGDATA an empty directory."""
        await trio.to_thread.run_sync(data_directory.recreate, self.settings.pgdata, self.run_as)

    async def write_postgresql_conf(self, parsed: ParsedSpec) -> None:
        """Write the configuration file as a whole."""
        text = render_postgresql_conf(parsed, self._conf_context())
        write_atomically(self.settings.pgdata / "postgresql.conf", text, self.run_as)

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
        data_directory.complete_after_basebackup(self.settings.pgdata, self.run_as, is_primary=parsed.is_primary)

    def open_postmaster(self, parsed: ParsedSpec, urgency: Cell[Urgency]) -> AbstractAsyncContextManager[Postmaster]:
        """Run Postgres for as long as the block runs."""
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

    async def apply_catalog(self, parsed: ParsedSpec) -> None:
        """Bring roles and databases to the wanted state."""
        from trio_compute.db.maintenance import execute_all, open_maintenance, read_catalog
        from trio_compute.plan.catalog import plan_catalog

        async with open_maintenance(self.settings.connstr, purpose="apply_config") as connection:
            catalog = await read_catalog(connection)
            plan = plan_catalog(parsed.spec.cluster, self.settings.privileged_role_name, catalog)
            await execute_all(connection, plan)

    async def upgrade_neon_extension(self) -> None:
        """Bring the neon extension, where it is installed, to the version of the library."""
        from trio_compute.db.maintenance import open_maintenance, upgrade_neon_extension

        async with open_maintenance(self.settings.connstr, purpose="post_apply_config") as connection:
            await upgrade_neon_extension(connection)

    def stop_neighbours(self) -> None:
        """Stop pgbouncer and local_proxy."""
        stop_neighbours(self.settings)

    async def log_backtraces(self) -> None:
        """Log what core dumps tell."""
        await log_backtraces(self.settings.pgdata, self.pgbin, self._environ(None))

    def _control_group(self) -> list[str]:
        return ["cgexec", "-g", f"memory:{self.settings.cgroup}"] if self.settings.autoscaling else []

    def _environ(self, parsed: ParsedSpec | None) -> dict[str, str]:
        environ = dict(self.settings.child_environ)
        if self.run_as.home is not None:
            environ["HOME"] = self.run_as.home
        if parsed is not None and parsed.spec.storage_auth_token is not None:
            environ["NEON_AUTH_TOKEN"] = parsed.spec.storage_auth_token
        return environ

    def _conf_context(self) -> ConfContext:
        return ConfContext(
            privileged_role_name=self.settings.privileged_role_name,
            internal_http_port=self.settings.internal_http_port,
            strict_overcommit=_strict_overcommit(),
        )


def _check_connstr(connstr: str) -> None:
    if "://" not in connstr:
        raise SpecError("cannot parse connstr as a URL")
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
