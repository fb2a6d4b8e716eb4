"""The server that tenants attack: it asks for passwords if it shall, and its log holds what no rollback can undo."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql as composed

from tests.integration.bare_postgres import PRIVILEGED, BarePostgres
from trio_compute.host.run_as import RunAs
from trio_compute.model.catalog_rules import SUPERUSER

PASSWORD = "correct-horse"
WORD = "TRAP"  # how a line of the log begins that a trap has written
_numbers = itertools.count()
# The superuser's sessions of the tests themselves shall not fall into any trap.
_OURS = (
    "-c role={superuser} -c search_path=pg_catalog,pg_temp -c session_replication_role=replica -c statement_timeout=0 "
    "-c lock_timeout=60s -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c local_preload_libraries= -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed"
)


def fresh(word: str) -> str:
    """Return a name that nothing else here has."""
    return f"{word}_{next(_numbers)}"


class Ground(BarePostgres):
    """Run one Postgres with a strict or a trusting `pg_hba.conf`, few locks, and a log that can be read in pieces."""

    def __init__(self, tree: Path, run_as: RunAs, *, strict: bool = False) -> None:
        super().__init__(tree, run_as)
        self.tree = tree
        self.major = int((self.data / "PG_VERSION").read_text())
        self._password: str | None = None
        self._strict = strict
        self._verifiers: dict[str, str] = {}
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("max_locks_per_transaction = 10\nmax_prepared_transactions = 10\nwal_keep_size = 0\n")
            file.write("max_connections = 60\nmax_replication_slots = 20\nmax_wal_senders = 10\n")

    def start(self) -> None:
        super().start()
        if self._strict and self._password is None:
            self.sql(f"ALTER ROLE {SUPERUSER} PASSWORD '{PASSWORD}'")
            # Word for word what a careful operator writes: nobody is trusted.
            (self.data / "pg_hba.conf").write_text("host all,replication all 127.0.0.1/32 scram-sha-256\n")
            self.sql("SELECT pg_reload_conf()")
            self._password = PASSWORD

    def url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        word = f":{self._password}" if self._password else ""
        return f"postgresql://{user}{word}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres", user: str = SUPERUSER, **options: Any) -> psycopg.Connection[Any]:
        if user == SUPERUSER and "options" not in options:
            switch = " -c event_triggers=off" if self.major >= 17 else ""
            options["options"] = _OURS.format(superuser=SUPERUSER) + switch
        if self._password:
            options.setdefault("password", PASSWORD)
        return super().connect(database, user, **options)

    def role(self, name: str) -> dict[str, Any]:
        """Return a role as a spec lists it, with the password that `connect` gives."""
        if name not in self._verifiers:
            with super().connect(password=self._password) as session:
                verifier = session.pgconn.encrypt_password(PASSWORD.encode(), name.encode(), b"scram-sha-256")
            self._verifiers[name] = verifier.decode()
        return {"name": name, "encrypted_password": self._verifiers[name]}

    def make_tenant(self, name: str) -> str:
        """Make a role as an apply does, and return its name."""
        verifier = self.role(name)["encrypted_password"]
        with self.connect() as session:
            if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (PRIVILEGED,)).fetchone():
                session.execute(
                    f"CREATE ROLE {PRIVILEGED} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS "
                    "IN ROLE pg_read_all_data, pg_write_all_data"
                )
            words = f"INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE {PRIVILEGED} LOGIN PASSWORD"
            session.execute(named("CREATE ROLE {} ", name) + composed.SQL(words) + composed.Literal(verifier))
        return name

    def log_end(self) -> int:
        """Return where the log ends now."""
        return (self.data / "log").stat().st_size

    def log_since(self, position: int) -> str:
        """Return what was logged since."""
        with (self.data / "log").open("rb") as file:
            file.seek(position)
            return file.read().decode(errors="replace")

    def dump(self, database: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the server's own pg_dump."""
        return subprocess.run(
            [str(self.tree / "bin" / "pg_dump"), "--schema-only", database],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )


def named(statement: str, *names: str) -> composed.Composed:
    """Return a statement whose `{}` are names."""
    return composed.SQL(statement).format(*map(composed.Identifier, names))  # type: ignore[arg-type]
