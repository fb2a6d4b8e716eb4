"""Phases of the lakebase profile (contract 05 §12); names are qualified throughout (K-28)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import structs

from trio_compute.plan.catalog.operations import Operation, Subject
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import RoleFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

MONITOR = "databricks_monitor"
_ROLES = {
    MONITOR: "LOGIN PASSWORD NULL IN ROLE pg_monitor",
    "databricks_control_plane": "SUPERUSER LOGIN PASSWORD NULL",
    "databricks_gateway": "LOGIN PASSWORD NULL",
}
_READER = re.compile(r"\Adatabricks_reader_[0-9]+\Z")
_GRANTS = (
    f"GRANT USAGE ON SCHEMA neon TO {MONITOR}",
    f"GRANT SELECT, INSERT, UPDATE ON public.health_check TO {MONITOR}",
    f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text) TO {MONITOR}",
    f"GRANT SELECT ON neon.neon_perf_counters TO {MONITOR}",
    f"GRANT EXECUTE ON FUNCTION neon.get_perf_counters() TO {MONITOR}",
)
_WRITE_CHECK = """\
CREATE OR REPLACE FUNCTION public.health_check_write_succeeds() RETURNS int LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO public.health_check (id) VALUES (1)
    ON CONFLICT (id) DO UPDATE SET updated_at = pg_catalog.now();
    RETURN 1;
EXCEPTION WHEN OTHERS THEN
    RAISE EXCEPTION '[DATABRICKS_SMGR] health check cannot write: % (%)', SQLERRM, SQLSTATE;
END
$body$"""
# What Neon's own build of Postgres brings; on any other these are only missing.
_ABSENT = frozenset({"42P01", "42883", "42704", "3F000"})


def create_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the roles of the platform."""
    for name, words in _ROLES.items() if wanted.lakebase else ():
        if name not in state.roles:
            state.roles[name] = RoleFacts()
            yield Operation(
                what=f"create role {name}",
                why="lakebase needs it",
                statement=f"CREATE ROLE {identifier(name)} {words}",
                subject=Subject("role", name),
            )


def alter_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the statement timeout of reader roles."""
    timeout = wanted.reader_statement_timeout
    if not wanted.lakebase or timeout in {None, "", "0"}:
        return
    setting = f"statement_timeout={timeout}"
    for name, facts in state.roles.items():
        if _READER.match(name) and setting not in facts.settings:
            state.roles[name] = structs.replace(facts, settings=facts.settings | {setting})
            yield Operation(
                what=f"limit the statements of role {name}",
                why="setting databricks.reader_statement_timeout",
                statement=f"ALTER ROLE {identifier(name)} SET statement_timeout = {literal(timeout or '')}",
                subject=Subject("role", name),
            )


def handle_auth_extension(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan databricks_auth anew, as its library may have changed."""
    if not wanted.lakebase:
        return
    if "databricks_auth" not in state.available_extensions:
        warnings.append("extension databricks_auth is not there to be installed")
        return
    statements = {
        "drop extension databricks_auth": "DROP EXTENSION IF EXISTS databricks_auth",
        "create extension databricks_auth": "CREATE EXTENSION databricks_auth WITH SCHEMA public",
        "let pg_monitor read its metrics": "GRANT SELECT ON public.databricks_auth_metrics TO pg_monitor",
    }
    subject, why = Subject("extension", "databricks_auth"), "lakebase makes it anew on every apply"
    for what, statement in statements.items():
        yield Operation(what=what, why=why, statement=statement, subject=subject)


def add_grants(wanted: Wanted, _state: Snapshot) -> Iterator[Operation]:
    """Plan the privileges of the monitor."""
    for statement in _GRANTS if wanted.lakebase else ():
        yield Operation(
            what=f"grant to {MONITOR}",
            why="lakebase needs it",
            statement=statement,
            subject=Subject("role", MONITOR),
            tolerated=_ABSENT,
        )


def create_misc(wanted: Wanted, _state: Snapshot) -> Iterator[Operation]:
    """Plan the monitor's time limit and the function that tries to write."""
    if wanted.lakebase:
        yield Operation(
            what=f"limit the statements of role {MONITOR}",
            why="lakebase needs it",
            statement=f"ALTER ROLE {MONITOR} SET statement_timeout = '60s'",
            subject=Subject("role", MONITOR),
        )
        yield Operation(
            what="create function health_check_write_succeeds",
            why="lakebase needs it",
            statement=_WRITE_CHECK,
            subject=Subject("object", "function public.health_check_write_succeeds"),
        )
