"""One bare Postgres for many tests, and the catalog applied to it as a compute would."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql as composed

from tests.fakes.specs import parsed
from trio_compute.db.apply import apply_catalog
from trio_compute.deadlines import Deadlines
from trio_compute.embedded.free_ports import free_port
from trio_compute.host.run_as import RunAs
from trio_compute.model.catalog_rules import SUPERUSER
from trio_compute.plan.catalog.operations import Plan
from trio_compute.plan.catalog.wanted import Wanted, wanted_of
from trio_compute.telemetry.spans import Recorder

PRIVILEGED = "neon_superuser"
QUICK = Deadlines(catalog_lock=10, catalog_statement=20, catalog_retry=5, catalog_total=60)
_CONF = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "fsync": "off",
    "wal_level": "logical",
    "max_connections": "40",
    "superuser_reserved_connections": "3",
    "max_prepared_transactions": "5",
    "autovacuum": "off",
    "log_line_prefix": "'%m [%p] '",
    "neon.timeline_id": f"'{'0' * 32}'",
}
_numbers = itertools.count()


def fresh(word: str) -> str:
    """Return a name that no other test uses."""
    return f"{word}_{next(_numbers)}"


class BarePostgres:
    """Run one server until `stop`, and speak SQL to it as the superuser or as anybody."""

    def __init__(self, tree: Path, run_as: RunAs) -> None:
        self._take_place(tree, run_as)
        self._run(
            "initdb", "-D", str(self.data), "-U", SUPERUSER, "-N", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"
        )
        lines = [f"{name} = {value}\n" for name, value in {**_CONF, "port": str(self.port)}.items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def _take_place(self, tree: Path, run_as: RunAs) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
        self.directory = Path(tempfile.mkdtemp(prefix="trio-compute-bare-", dir=base))
        self.directory.chmod(0o755)
        self.data = self.directory / "data"
        self.data.mkdir(mode=0o700)
        run_as.own(self.data)
        self._bin, self._run_as = tree / "bin", run_as
        self.port = free_port()

    def clone_standby(self) -> BarePostgres:
        """Return a replica that follows this server, not started yet."""
        copy = object.__new__(BarePostgres)
        copy._take_place(self._bin.parent, self._run_as)
        self._run("pg_basebackup", "-D", str(copy.data), "-d", self.url(), "-R", "-c", "fast", "-X", "stream")
        with (copy.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {copy.port}\n")
        return copy

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "30", "-l", str(self.data / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Stop the server if it runs and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        options = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        subprocess.run(command, **options, **self._run_as.process_options())

    def url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return a connection URL; only for names that need no escaping."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres", user: str = SUPERUSER, **options: Any) -> psycopg.Connection[Any]:
        """Open a session of a user's own."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname=database, user=user, autocommit=True, sslmode="disable", **options
        )

    def sql(self, statement: str, *parameters: Any, database: str = "postgres", user: str = SUPERUSER) -> list[Any]:
        """Run statements in a session of their own and return the last rows."""
        with self.connect(database, user) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def do(self, statement: str, *names: str, database: str = "postgres", user: str = SUPERUSER) -> None:
        """Run one statement whose `{}` are names."""
        with self.connect(database, user) as connection:
            connection.execute(composed.SQL(statement).format(*map(composed.Identifier, names)))  # type: ignore[arg-type]

    def exists(self, kind: str, name: str) -> bool:
        """Tell whether a `role` or a `database` is there."""
        query = {
            "role": "SELECT 1 FROM pg_roles WHERE rolname = %s",
            "database": "SELECT 1 FROM pg_database WHERE datname = %s",
        }
        return bool(self.sql(query[kind], name))

    def forget_migrations(self) -> None:
        """Let the cluster have run none."""
        self.sql("DROP SCHEMA IF EXISTS neon_migration CASCADE")
        self.sql(f"ALTER ROLE {SUPERUSER} RESET trio_compute.migration")

    def kill(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of the server."""
        os.kill(pid, number)


def wanted(
    roles: list[Any] | None = None,
    databases: list[tuple[str, str]] | None = None,
    delta: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Wanted:
    """Return a wanted state; roles are names or dictionaries, databases are names with owners."""
    cluster = {
        "roles": [
            role if isinstance(role, dict) else {"name": role, "encrypted_password": None} for role in roles or []
        ],
        "databases": [{"name": name, "owner": owner} for name, owner in databases or []],
    }
    privileged = changes.pop("privileged_role", PRIVILEGED)
    spec = parsed(cluster=cluster, delta_operations=delta, **changes)
    return wanted_of(spec, privileged_role=privileged)


async def apply(
    server: BarePostgres, state: Wanted, *, workers: int = 4, deadlines: Deadlines = QUICK, url: str | None = None
) -> Plan:
    """Bring the server to a wanted state."""
    return await apply_catalog(url or server.url(), state, workers=workers, deadlines=deadlines, spans=Recorder())


def bare_postgres(tree: Path, run_as: RunAs) -> Iterator[BarePostgres]:
    """Run a server for a fixture."""
    server = BarePostgres(tree, run_as)
    try:
        server.start()
        yield server
    finally:
        server.remove()
