"""Phases of the lakebase profile (contract 05 §12); names are qualified throughout (K-28)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct, structs

from trio_compute.plan.catalog import notes
from trio_compute.plan.catalog.blocks import run_all
from trio_compute.plan.catalog.extensions import HEALTH_CHECK, create_relocatable, is_safe
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


class Grant(Struct, frozen=True):
    """Hold what the monitor may do; `held` is SQL that tells so, of the oid `m.oid`, and is null without the object."""

    what: str
    words: str
    held: str


GRANTS = (
    Grant(
        "schema neon",
        "USAGE ON SCHEMA neon",
        "pg_catalog.has_schema_privilege(m.oid, pg_catalog.to_regnamespace('neon')::pg_catalog.oid, 'USAGE')",
    ),
    Grant(
        "table health_check",
        "SELECT, INSERT, UPDATE ON public.health_check",
        " AND ".join(
            f"pg_catalog.has_table_privilege(m.oid, "
            f"pg_catalog.to_regclass('public.health_check')::pg_catalog.oid, '{privilege}')"
            for privilege in ("SELECT", "INSERT", "UPDATE")
        ),
    ),
    Grant(
        "function pg_ls_dir",
        "EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(pg_catalog.text)",
        "pg_catalog.has_function_privilege(m.oid, "
        "pg_catalog.to_regprocedure('pg_catalog.pg_ls_dir(pg_catalog.text)')::pg_catalog.oid, 'EXECUTE')",
    ),
    Grant(
        "view neon_perf_counters",
        "SELECT ON neon.neon_perf_counters",
        "pg_catalog.has_table_privilege(m.oid, "
        "pg_catalog.to_regclass('neon.neon_perf_counters')::pg_catalog.oid, 'SELECT')",
    ),
    Grant(
        "function get_perf_counters",
        "EXECUTE ON FUNCTION neon.get_perf_counters()",
        "pg_catalog.has_function_privilege(m.oid, "
        "pg_catalog.to_regprocedure('neon.get_perf_counters()')::pg_catalog.oid, 'EXECUTE')",
    ),
)
_WRITE_CHECK = """
BEGIN
    INSERT INTO public.health_check (id) VALUES (1)
    ON CONFLICT (id) DO UPDATE SET updated_at = pg_catalog.now();
    RETURN 1;
EXCEPTION WHEN OTHERS THEN
    RAISE EXCEPTION '[DATABRICKS_SMGR] health check cannot write: % (%)', SQLERRM, SQLSTATE;
END
"""
_CREATE_WRITE_CHECK = (
    "CREATE OR REPLACE FUNCTION public.health_check_write_succeeds() RETURNS int LANGUAGE plpgsql "
    f"AS $body${_WRITE_CHECK}$body$"
)
_MONITOR_LIMIT = "60s"
# What Neon's own build of Postgres brings; on any other these are only missing.
_ABSENT = frozenset({"42P01", "42883", "42704", "3F000"})


def create_roles(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan the roles of the platform; one that somebody else made gets nothing for its name (T-05)."""
    if not wanted.lakebase:
        return
    before = state.platform_roles
    for name, words in _ROLES.items():
        if name not in state.roles:
            state.roles[name] = RoleFacts()
            state.platform_roles |= {name}
            yield Operation(
                what=f"create role {name}",
                why="lakebase needs it",
                statement=f"CREATE ROLE {identifier(name)} {words}",
                subject=Subject("role", name),
            )
        elif not state.has_notes:
            # The original made it and keeps no notes; from now on there are some.
            state.platform_roles |= {name}
        elif not _is_platform_role(name, wanted, state):
            warnings.append(f"role {name} was made by somebody else, and gets nothing that the platform's would get")
    if state.platform_roles != before:
        yield _note_platform_roles(state)


def _is_platform_role(name: str, wanted: Wanted, state: Snapshot) -> bool:
    return name in state.platform_roles or any(role.name == name for role in wanted.roles)


def _note_platform_roles(state: Snapshot) -> Operation:
    names = ", ".join(map(literal, sorted(state.platform_roles)))
    command = notes.note(notes.PLATFORM_ROLES, "").removesuffix("''") + "%L"
    query = (
        f"SELECT pg_catalog.format({literal(command)}, pg_catalog.string_agg(r.oid::pg_catalog.text, ',')) "
        f"FROM pg_catalog.pg_authid r WHERE r.rolname OPERATOR(pg_catalog.=) ANY (ARRAY[{names}]::pg_catalog.name[])"
    )
    return Operation(
        what="note which roles were made for the platform",
        why="a name alone gives no rights",
        statement=run_all(query),
        subject=Subject("object", "notes of the compute"),
    )


def alter_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the statement timeout of reader roles, as far as they are the platform's."""
    timeout = wanted.reader_statement_timeout
    if not wanted.lakebase or timeout in {None, "", "0"}:
        return
    setting = f"statement_timeout={timeout}"
    for name, facts in list(state.roles.items()):
        if _READER.match(name) and _is_platform_role(name, wanted, state) and setting not in facts.settings:
            state.roles[name] = structs.replace(facts, settings=facts.settings | {setting})
            yield Operation(
                what=f"limit the statements of role {name}",
                why="setting databricks.reader_statement_timeout",
                statement=f"ALTER ROLE {identifier(name)} SET statement_timeout = {literal(timeout or '')}",
                subject=Subject("role", name),
            )


def handle_auth_extension(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan databricks_auth anew, once for each apply, as its library may have changed."""
    if not wanted.lakebase or state.auth_made_anew:
        return
    if "databricks_auth" not in state.available_extensions:
        warnings.append("extension databricks_auth is not there to be installed")
        return
    if "public" not in state.schemas:
        warnings.append("extension databricks_auth is not installed: there is no schema public")
        return
    state.auth_made_anew = True
    statements = {
        "drop extension databricks_auth": "DROP EXTENSION IF EXISTS databricks_auth",
        "create extension databricks_auth": create_relocatable("databricks_auth", "public", "neon_workshop_of_auth"),
        "let pg_monitor read its metrics": "GRANT SELECT ON public.databricks_auth_metrics TO pg_monitor",
    }
    subject, why = Subject("extension", "databricks_auth"), "lakebase makes it anew on every apply"
    for what, statement in statements.items():
        yield Operation(what=what, why=why, statement=statement, subject=subject)


def add_grants(wanted: Wanted, state: Snapshot, before: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan the privileges of the monitor that it lacks; what is not there now may come with what this plan makes."""
    if not wanted.lakebase or not _is_platform_role(MONITOR, wanted, state):
        return
    is_known = MONITOR in before.roles
    is_made = state.former_tables != before.former_tables
    comes = is_made or state.extensions.get("neon") != before.extensions.get("neon")
    for grant in GRANTS:
        held = state.monitor_grants.get(grant.what) if is_known else False
        if grant.what == "table health_check" and not state.former_tables.get(HEALTH_CHECK):
            continue
        if held is None and not comes:
            warnings.append(f"{grant.what} is not there to be granted to {MONITOR}")
        elif not held:
            state.monitor_grants[grant.what] = True
            yield Operation(
                what=f"grant {grant.what} to {MONITOR}",
                why="lakebase needs it",
                statement=f"GRANT {grant.words} TO {MONITOR}",
                subject=Subject("role", MONITOR),
                tolerated=_ABSENT,
            )


def create_misc(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan the monitor's time limit and the function that tries to write."""
    if not wanted.lakebase:
        return
    facts, limit = state.roles.get(MONITOR), f"statement_timeout={_MONITOR_LIMIT}"
    if facts is not None and limit not in facts.settings and _is_platform_role(MONITOR, wanted, state):
        state.roles[MONITOR] = structs.replace(facts, settings=facts.settings | {limit})
        yield Operation(
            what=f"limit the statements of role {MONITOR}",
            why="lakebase needs it",
            statement=f"ALTER ROLE {MONITOR} SET statement_timeout = '{_MONITOR_LIMIT}'",
            subject=Subject("role", MONITOR),
        )
    if not is_safe(state.schemas.get("public")) or not state.former_tables.get(HEALTH_CHECK):
        warnings.append("function health_check_write_succeeds is not created: schema public is not there, or not ours")
    elif state.write_check != _WRITE_CHECK:
        state.write_check = _WRITE_CHECK
        yield Operation(
            what="create function health_check_write_succeeds",
            why="lakebase needs it, as this version has it",
            statement=_CREATE_WRITE_CHECK,
            subject=Subject("object", "function public.health_check_write_succeeds"),
        )
