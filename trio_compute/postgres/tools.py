"""The part of `Host` that works with the files and programs of the installation, and with the socket in PGDATA."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_compute.host.run_as import RunAs
from trio_compute.model.parsed import ParsedSpec
from trio_compute.settings import Settings

if TYPE_CHECKING:
    from trio_compute.plan.remote_extensions import Archive
    from trio_compute.postgres.communicator import PostgresMetrics
    from trio_compute.postgres.dump_places import DumpPlaces
    from trio_compute.postgres.extension_staging import Places
    from trio_compute.postgres.installation import Installation
    from trio_compute.postgres.schema_dump import SchemaDump

DUMP_NAME = "compute_ctl:database_schema"


class PostgresTools:
    """Install extensions, dump, probe and measure; what fails raises PostgresError, HostError or RemoteError."""

    settings: Settings
    run_as: RunAs
    pgbin: Path

    def __init__(self) -> None:
        self._dump_places: DumpPlaces | None = None
        self._dump_numbers = count(1)

    def _environ(self, parsed: ParsedSpec | None) -> dict[str, str]:
        raise NotImplementedError

    async def inspect_installation(self) -> Installation:
        """Return what pg_config says."""
        from trio_compute.postgres.installation import inspect_installation

        return await inspect_installation(self.pgbin, environ=self._environ(None), run_as=self.run_as)

    async def sweep_extensions(self, places: Places) -> None:
        """Remove what a killed process left where extensions are installed."""
        from trio_compute.postgres.extension_staging import sweep

        await trio.to_thread.run_sync(sweep, places)

    async def write_control_files(self, files: Sequence[tuple[str, str]], places: Places) -> list[str]:
        """Write the control files that are not there yet and return the names of the others."""
        from trio_compute.postgres.extension_staging import open_staging

        if not files:
            return []
        async with open_staging(places) as staging:
            return await trio.to_thread.run_sync(staging.add_new, files)

    async def fetch_extension(self, archive: Archive, places: Places) -> int:
        """Download and install one archive and return its size in bytes."""
        from trio_compute.storage.extension_gateway import fetch_extension

        base_url = self.settings.remote_ext_base_url
        assert base_url is not None
        return await fetch_extension(base_url, archive, places, deadlines=self.settings.deadlines)

    def schema_dump(self, database: str, encoding: str, options: str = "") -> SchemaDump:
        """Return a dump of a database's definitions that is not started yet, with more options for its session."""
        from trio_compute.db.maintenance import fortress_options
        from trio_compute.db.target import Target
        from trio_compute.postgres.binaries import sibling
        from trio_compute.postgres.dump_places import DumpPlaces
        from trio_compute.postgres.schema_dump import SchemaDump, dump_arguments, dump_environ

        target, limits = Target.parse(self.settings.connstr), self.settings.deadlines
        name = f"{DUMP_NAME}:{next(self._dump_numbers)}"
        argv = dump_arguments(str(sibling(self.pgbin, "pg_dump")), target, limits)
        environ = dump_environ(
            self._environ(None),
            target,
            database,
            name=name,
            options=f"{fortress_options(self.settings.connstr, limits)} {options}".rstrip(),
            encoding=encoding,
            deadlines=limits,
        )
        if self._dump_places is None:
            self._dump_places = DumpPlaces(self.dumps_that_wait)
        return SchemaDump(argv, environ, self.run_as, self._dump_places, limits, name=name)

    async def dumps_that_wait(self, names: Collection[str]) -> set[str]:
        """Return those of some dumps that wait for a lock."""
        from trio_compute.db.dump_waits import dumps_that_wait

        return await dumps_that_wait(self.settings.connstr, names, self.settings.deadlines)

    async def undoing_options(self, database: str) -> str:
        """Return the options of a session that undo what a database sets for all of its sessions."""
        from trio_compute.db.database_encoding import undoing_options

        return await undoing_options(self.settings.connstr, database, self.settings.deadlines)

    async def database_encoding(self, database: str) -> str | None:
        """Return the encoding of a database, None if Postgres has none of this name."""
        from trio_compute.db.database_encoding import database_encoding

        return await database_encoding(self.settings.connstr, database, self.settings.deadlines)

    async def check_accepting(self) -> None:
        """Return if pg_isready says that Postgres accepts connections."""
        from trio_compute.postgres.liveness import check_accepting

        await check_accepting(self.pgbin, self.settings.connstr, environ=self._environ(None), run_as=self.run_as)

    async def fetch_postgres_metrics(self) -> PostgresMetrics:
        """Return the metrics that Postgres serves, once their headers are there."""
        from trio_compute.postgres.communicator import fetch_metrics

        return await fetch_metrics(self.settings.pgdata)
