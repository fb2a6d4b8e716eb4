"""Read from a running Postgres what planning needs to know (contract 05 §3); any error is fatal (K-13)."""

from __future__ import annotations

from typing import Any

from trio_compute.db.maintenance import Connection
from trio_compute.plan.catalog.lakebase import GRANTS, MONITOR
from trio_compute.plan.catalog.snapshot import DatabaseFacts, ExtensionFacts, RoleFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.plan.conf_syntax import split_libraries

_FACTS = """\
SELECT current_setting('server_version_num')::int / 10000,
       current_database()::text,
       current_setting('shared_preload_libraries'),
       to_regclass('public.health_check') IS NOT NULL,
       to_regclass('neon.drop_subscriptions_done') IS NOT NULL,
       to_regclass('neon.prepared_databases') IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s
               JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
               WHERE s.setrole = 0 AND 'pgaudit.log=none' = ANY (s.setconfig)),
       ARRAY(SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname IN ('neon', 'public'))"""
_ROLES = """\
SELECT a.rolname::text, a.rolpassword,
       array_remove(ARRAY[CASE WHEN a.rolcreatedb THEN 'CREATEDB' END, CASE WHEN a.rolcreaterole THEN 'CREATEROLE' END,
                          CASE WHEN a.rolreplication THEN 'REPLICATION' END,
                          CASE WHEN a.rolbypassrls THEN 'BYPASSRLS' END], NULL),
       coalesce(s.setconfig, '{}')
FROM pg_catalog.pg_authid a
LEFT JOIN pg_catalog.pg_db_role_setting s ON s.setrole = a.oid AND s.setdatabase = 0"""
_MEMBERSHIPS = """\
SELECT r.rolname::text FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_roles r ON r.oid = m.roleid
WHERE m.member = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)"""
_DATABASES = """\
SELECT d.datname::text, o.rolname::text, d.datallowconn, d.datconnlimit = -2, d.datistemplate,
       (SELECT count(DISTINCT entry.privilege_type) = 3 FROM aclexplode(d.datacl) AS entry
        JOIN pg_catalog.pg_roles p ON p.oid = entry.grantee WHERE p.rolname = %s),
       (SELECT count(*)::int FROM pg_catalog.pg_subscription s WHERE s.subdbid = d.oid),
       d.oid::int8, coalesce(r.readers, 0)
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles o ON o.oid = d.datdba
LEFT JOIN (SELECT database, count(*)::int AS readers FROM pg_catalog.pg_replication_slots WHERE active GROUP BY 1) r
          ON r.database = d.datname
ORDER BY d.datname"""
_FOOTHOLDS = """\
SELECT r.rolname::text, array_agg(DISTINCT coalesce(d.datname::text, current_database()::text))
FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_authid r ON s.refclassid = 'pg_catalog.pg_authid'::regclass AND r.oid = s.refobjid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
WHERE r.rolname = ANY (%s)
GROUP BY 1"""
_EXTENSIONS = """\
SELECT e.extname::text, n.nspname::text, e.extrelocatable, e.extversion = coalesce(a.default_version, e.extversion)
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
LEFT JOIN pg_catalog.pg_available_extensions() a ON a.name = e.extname"""
_AVAILABLE = "SELECT name::text FROM pg_catalog.pg_available_extensions()"
_MARKER = "SELECT timeline_id FROM neon.drop_subscriptions_done WHERE id = 1"
_PREPARED = "SELECT database::int8, mark FROM neon.prepared_databases"
_LAKEBASE = """\
SELECT {grants},
       (SELECT prosrc FROM pg_catalog.pg_proc
        WHERE oid = to_regprocedure('public.health_check_write_succeeds()')::oid)
FROM (SELECT (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s) AS oid) m"""


async def read_snapshot(connection: Connection, wanted: Wanted) -> Snapshot:
    """Return what exists, in a handful of queries whatever the number of roles and databases."""
    rows = await _rows(connection, _FACTS)
    major, database, libraries, has_health_check, has_marker, has_prepared, audit_silenced, schemas = rows[0]
    prepared = dict(await _rows(connection, _PREPARED)) if has_prepared else {}
    marker = await _rows(connection, _MARKER) if has_marker else []
    databases = {
        name: DatabaseFacts(
            owner, connectable, invalid, template, bool(granted), subscriptions, prepared.get(oid), readers
        )
        for name, owner, connectable, invalid, template, granted, subscriptions, oid, readers in await _rows(
            connection, _DATABASES, wanted.privileged_role
        )
    }
    # A role that is renamed first and deleted then has its footholds under the old name yet.
    leaving = wanted.subjects("delete_role")
    leaving += wanted.subjects("rename_role") if leaving else []
    footholds = await _rows(connection, _FOOTHOLDS, leaving) if leaving else []
    grants = ", ".join(grant.held for grant in GRANTS)
    lakebase = (await _rows(connection, _LAKEBASE.format(grants=grants), MONITOR))[0] if wanted.lakebase else None
    return Snapshot(
        major=major,
        system_database=database,
        roles=await _read_roles(connection, wanted.privileged_role),
        databases=databases,
        footholds={role: frozenset(names) for role, names in footholds},
        extensions={name: ExtensionFacts(*facts) for name, *facts in await _rows(connection, _EXTENSIONS)},
        available_extensions=frozenset(name for (name,) in await _rows(connection, _AVAILABLE)),
        schemas=frozenset(schemas),
        libraries=split_libraries(libraries),
        has_health_check=has_health_check,
        audit_silenced=audit_silenced,
        dropped_subscriptions_of=marker[0][0] if marker else None,
        monitor_grants={} if lakebase is None else {g.what: held for g, held in zip(GRANTS, lakebase, strict=False)},
        write_check=None if lakebase is None else lakebase[-1],
    )


async def _read_roles(connection: Connection, privileged_role: str) -> dict[str, RoleFacts]:
    groups = frozenset(name for (name,) in await _rows(connection, _MEMBERSHIPS, privileged_role))
    return {
        name: RoleFacts(
            password,
            frozenset(attributes),
            groups if name == privileged_role else frozenset(),
            frozenset(settings),
        )
        for name, password, attributes, settings in await _rows(connection, _ROLES)
    }


async def _rows(connection: Connection, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(query.encode(), parameters or None)
    return await cursor.fetchall()
