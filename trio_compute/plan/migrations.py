"""One-way changes of the catalog, each applied once, in order (contract 05 §14); only ever append to the list."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.quoting import identifier, literal

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
CURRENT = "SELECT id FROM neon_migration.migration_id WHERE key = 0"
ADVANCE = "UPDATE neon_migration.migration_id SET id = %s WHERE key = 0"


def preparation() -> tuple[str, ...]:
    """Return the statements that make the record of what was run, in order."""
    superuser = identifier(catalog_rules.SUPERUSER)
    return tuple(statement.format(superuser=superuser) for statement in _PREPARE)


Build = Callable[[str, int], str | None]


class Migration(Struct, frozen=True):
    """Hold one migration: what it does to the privileged role on a major version, or why it is skipped (K-31)."""

    name: str
    build: Build | None = None
    skipped: str | None = None

    def statement(self, privileged_role: str, major: int) -> str | None:
        """Return the SQL, or None when there is nothing to do."""
        return None if self.build is None else self.build(privileged_role, major)


def _since(first_major: int, build: Callable[[str], str]) -> Build:
    return lambda role, major: build(identifier(role)) if major >= first_major else None


def _fixed(build: Callable[[str], str]) -> Build:
    return _since(0, build)


# Members inherit; for everybody else but the roles of Postgres itself, row security stays in force.
_ALTER_ROLES = """\
DO $migration$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT rolname, pg_catalog.pg_has_role(rolname, {role}, 'member') AS is_member
        FROM pg_catalog.pg_roles
    LOOP
        IF each.is_member THEN
            RAISE NOTICE 'role % inherits', each.rolname;
            EXECUTE format('ALTER ROLE %I INHERIT', each.rolname);
        ELSIF NOT starts_with(each.rolname::text, 'pg_') THEN
            RAISE NOTICE 'role % does not bypass row security', each.rolname;
            EXECUTE format('ALTER ROLE %I NOBYPASSRLS', each.rolname);
        END IF;
    END LOOP;
END
$migration$"""
_BY_CATALOG = "done for each database when the catalog is applied"

MIGRATIONS = (
    Migration("add_bypass_rls_to_privileged_role", _fixed(lambda role: f"ALTER ROLE {role} BYPASSRLS")),
    Migration("alter_roles", lambda role, _major: _ALTER_ROLES.format(role=literal(role))),
    Migration(
        "grant_pg_create_subscription_to_privileged_role",
        _since(16, lambda role: f"GRANT pg_create_subscription TO {role}"),
    ),
    Migration(
        "grant_pg_monitor_to_privileged_role", _fixed(lambda role: f"GRANT pg_monitor TO {role} WITH ADMIN OPTION")
    ),
    Migration("grant_all_on_tables_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_sequences_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_tables_with_grant_option_to_privileged_role", skipped=_BY_CATALOG),
    Migration("grant_all_on_sequences_with_grant_option_to_privileged_role", skipped=_BY_CATALOG),
    Migration("revoke_replication_for_previously_allowed_roles", skipped="superseded"),
    Migration(
        "grant_snapshot_synchronization_funcs_to_privileged_role",
        _since(
            16,
            lambda role: (
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_export_snapshot(), pg_catalog.pg_log_standby_snapshot() "
                f"TO {role}"
            ),
        ),
    ),
    Migration(
        "grant_pg_show_replication_origin_status_to_privileged_role",
        _fixed(lambda role: f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_replication_origin_status() TO {role}"),
    ),
    Migration(
        "grant_pg_signal_backend_to_privileged_role",
        _fixed(lambda role: f"GRANT pg_signal_backend TO {role} WITH ADMIN OPTION"),
    ),
)
