"""One-way changes of the catalog, each applied once, in order (contract 05 §14); only ever append to the list.

The number of the last one is a note of ours (`plan/catalog/notes.py`). The original's table gets it too, and is
believed only where there is no note yet, for others can write to it; what a number claims is looked at (11 T-04).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.quoting import identifier, literal

TABLE = "neon_migration.migration_id"
_PREPARE = (
    "CREATE SCHEMA IF NOT EXISTS neon_migration",
    """\
CREATE TABLE IF NOT EXISTS neon_migration.migration_id (
    key int4 NOT NULL PRIMARY KEY,
    id int8 NOT NULL DEFAULT 0
)""",
    "INSERT INTO neon_migration.migration_id (key, id) VALUES (0, 0) ON CONFLICT (key) DO NOTHING",
    "ALTER SCHEMA neon_migration OWNER TO {superuser}",
    "REVOKE ALL ON SCHEMA neon_migration FROM PUBLIC",
)
CURRENT = "SELECT id FROM neon_migration.migration_id WHERE key OPERATOR(pg_catalog.=) 0"
ADVANCE = "UPDATE neon_migration.migration_id SET id = %s WHERE key OPERATOR(pg_catalog.=) 0"


def preparation() -> tuple[str, ...]:
    """Return the statements that make the original's record of what was run, in order."""
    superuser = identifier(catalog_rules.SUPERUSER)
    return tuple(statement.format(superuser=superuser) for statement in _PREPARE)


Build = Callable[[str, int], str | None]


class Migration(Struct, frozen=True):
    """Hold one migration: what it does to the privileged role on a major version, or why it is skipped (K-31).

    `claim` makes the query that has a row if the effect is there; None where that cannot be told afterwards.
    """

    name: str
    build: Build | None = None
    claim: Build | None = None
    skipped: str | None = None

    def statement(self, privileged_role: str, major: int) -> str | None:
        """Return the SQL, or None when there is nothing to do."""
        return None if self.build is None else self.build(privileged_role, major)

    def claimed(self, privileged_role: str, major: int) -> str | None:
        """Return the query for the effect, or None when there is none to look for."""
        return None if self.claim is None else self.claim(privileged_role, major)


def _since(first_major: int, build: Callable[[str], str]) -> Build:
    return lambda role, major: build(identifier(role)) if major >= first_major else None


def _fixed(build: Callable[[str], str]) -> Build:
    return _since(0, build)


def _is_member(group: str, *, first_major: int = 0, admin: bool = False) -> Build:
    condition = " AND m.admin_option" if admin else ""
    return lambda role, major: (
        f"""\
SELECT 1 FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_authid g ON g.oid OPERATOR(pg_catalog.=) m.roleid
JOIN pg_catalog.pg_authid p ON p.oid OPERATOR(pg_catalog.=) m.member
WHERE g.rolname OPERATOR(pg_catalog.=) {literal(group)}
  AND p.rolname OPERATOR(pg_catalog.=) {literal(role)}{condition}"""
        if major >= first_major
        else None
    )


def _may_execute(*functions: str, first_major: int = 0) -> Build:
    def build(role: str, major: int) -> str | None:
        held = (
            f"pg_catalog.has_function_privilege(p.oid, {literal(name)}::pg_catalog.regprocedure, 'EXECUTE')"
            for name in functions
        )
        query = f"SELECT 1 FROM pg_catalog.pg_authid p WHERE p.rolname OPERATOR(pg_catalog.=) {literal(role)}"
        return f"{query} AND {' AND '.join(held)}" if major >= first_major else None

    return build


def _bypasses(role: str, _major: int) -> str:
    who = f"p.rolname OPERATOR(pg_catalog.=) {literal(role)}"
    return f"SELECT 1 FROM pg_catalog.pg_authid p WHERE p.rolbypassrls AND {who}"


# Members inherit; for everybody else but the roles of Postgres itself, row security stays in force.
_ALTER_ROLES = """\
DO LANGUAGE plpgsql $migration$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT rolname, pg_catalog.pg_has_role(rolname, {role}, 'member') AS is_member
        FROM pg_catalog.pg_roles
    LOOP
        IF each.is_member THEN
            RAISE NOTICE 'role % inherits', each.rolname;
            EXECUTE pg_catalog.format('ALTER ROLE %I INHERIT', each.rolname);
        ELSIF NOT pg_catalog.starts_with(each.rolname::pg_catalog.text, 'pg_') THEN
            RAISE NOTICE 'role % does not bypass row security', each.rolname;
            EXECUTE pg_catalog.format('ALTER ROLE %I NOBYPASSRLS', each.rolname);
        END IF;
    END LOOP;
END
$migration$"""
_BY_CATALOG = "done for each database when the catalog is applied"

_SNAPSHOTS = ("pg_catalog.pg_export_snapshot()", "pg_catalog.pg_log_standby_snapshot()")
_ORIGINS = "pg_catalog.pg_show_replication_origin_status()"

MIGRATIONS = (
    Migration("add_bypass_rls_to_privileged_role", _fixed(lambda role: f"ALTER ROLE {role} BYPASSRLS"), _bypasses),
    # Without a claim: what users did to their roles since then is theirs to do.
    Migration("alter_roles", lambda role, _major: _ALTER_ROLES.format(role=literal(role))),
    Migration(
        "grant_pg_create_subscription_to_privileged_role",
        _since(16, lambda role: f"GRANT pg_create_subscription TO {role}"),
        _is_member("pg_create_subscription", first_major=16),
    ),
    Migration(
        "grant_pg_monitor_to_privileged_role",
        _fixed(lambda role: f"GRANT pg_monitor TO {role} WITH ADMIN OPTION"),
        _is_member("pg_monitor", admin=True),
    ),
    Migration("grant_all_on_tables_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_sequences_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_tables_with_grant_option_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_sequences_with_grant_option_to_privileged_role", skipped=_BY_CATALOG),
    Migration("revoke_replication_for_previously_allowed_roles", skipped="superseded"),
    Migration(
        "grant_snapshot_synchronization_funcs_to_privileged_role",
        _since(16, lambda role: f"GRANT EXECUTE ON FUNCTION {', '.join(_SNAPSHOTS)} TO {role}"),
        _may_execute(*_SNAPSHOTS, first_major=16),
    ),
    Migration(
        "grant_pg_show_replication_origin_status_to_privileged_role",
        _fixed(lambda role: f"GRANT EXECUTE ON FUNCTION {_ORIGINS} TO {role}"),
        _may_execute(_ORIGINS),
    ),
    Migration(
        "grant_pg_signal_backend_to_privileged_role",
        _fixed(lambda role: f"GRANT pg_signal_backend TO {role} WITH ADMIN OPTION"),
        _is_member("pg_signal_backend", admin=True),
    ),
)
