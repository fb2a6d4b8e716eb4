"""Read from a running Postgres what planning needs to know (contract 05 §3); any error is fatal (K-13).

Only catalogs are read, and two tables of the original where there are no notes of ours yet: nothing else could have
been put there by anybody but a superuser (contract 11 T-02, T-04).
"""

from __future__ import annotations

from trio_compute.db.maintenance import Connection
from trio_compute.db.own_objects import SCHEMAS, FormerTable, former_tables, read_unless_locked
from trio_compute.plan.catalog import notes
from trio_compute.plan.catalog.extensions import HEALTH_CHECK, MARKER_TABLE
from trio_compute.plan.catalog.lakebase import GRANTS, MONITOR
from trio_compute.plan.catalog.snapshot import DatabaseFacts, ExtensionFacts, RoleFacts, SchemaFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted
from trio_compute.plan.conf_syntax import split_libraries

FORMER_TABLES = (HEALTH_CHECK, MARKER_TABLE, "neon.prepared_databases")
_FACTS = """\
SELECT pg_catalog.current_setting('server_version_num')::int OPERATOR(pg_catalog./) 10000,
       pg_catalog.current_database()::pg_catalog.text,
       pg_catalog.current_setting('shared_preload_libraries'),
       EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s
               JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.setdatabase
               WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                 AND s.setrole OPERATOR(pg_catalog.=) 0
                 AND 'pgaudit.log=none' OPERATOR(pg_catalog.=) ANY (s.setconfig))"""
_NOTES = """\
SELECT s.setdatabase::bigint, s.setconfig FROM pg_catalog.pg_db_role_setting s
JOIN pg_catalog.pg_authid a ON a.oid OPERATOR(pg_catalog.=) s.setrole
WHERE a.rolname OPERATOR(pg_catalog.=) CURRENT_USER"""
_ROLES = """\
SELECT a.rolname::pg_catalog.text, a.rolpassword,
       pg_catalog.array_remove(ARRAY[CASE WHEN a.rolcreatedb THEN 'CREATEDB' END,
                                     CASE WHEN a.rolcreaterole THEN 'CREATEROLE' END,
                                     CASE WHEN a.rolreplication THEN 'REPLICATION' END,
                                     CASE WHEN a.rolbypassrls THEN 'BYPASSRLS' END], NULL),
       coalesce(s.setconfig, ARRAY[]::pg_catalog.text[]), a.oid::bigint, a.rolsuper
FROM pg_catalog.pg_authid a
LEFT JOIN pg_catalog.pg_db_role_setting s
     ON s.setrole OPERATOR(pg_catalog.=) a.oid AND s.setdatabase OPERATOR(pg_catalog.=) 0"""
_MEMBERSHIPS = """\
SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_auth_members m
JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) m.roleid
WHERE m.member OPERATOR(pg_catalog.=)
      (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) %s)"""
# Which owners of databases a role can act as.
_POWERS = """\
SELECT r.rolname::pg_catalog.text, pg_catalog.array_agg(DISTINCT o.rolname::pg_catalog.text)
FROM pg_catalog.pg_authid r CROSS JOIN pg_catalog.pg_database d
JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) d.datdba
WHERE r.rolname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[]) AND o.oid OPERATOR(pg_catalog.<>) r.oid
  AND pg_catalog.pg_has_role(r.oid, o.oid, 'MEMBER')
GROUP BY 1"""
_DATABASES = """\
SELECT d.datname::pg_catalog.text, o.rolname::pg_catalog.text, d.datallowconn,
       d.datconnlimit OPERATOR(pg_catalog.=) -2, d.datistemplate,
       (SELECT pg_catalog.count(DISTINCT entry.privilege_type) OPERATOR(pg_catalog.=) 3
        FROM pg_catalog.aclexplode(d.datacl) AS entry
        JOIN pg_catalog.pg_roles p ON p.oid OPERATOR(pg_catalog.=) entry.grantee
        WHERE p.rolname OPERATOR(pg_catalog.=) %s),
       coalesce(s.subscriptions, 0), d.oid::bigint, coalesce(r.readers, 0), d.datconnlimit
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) d.datdba
LEFT JOIN (SELECT subdbid, pg_catalog.count(*)::int AS subscriptions FROM pg_catalog.pg_subscription GROUP BY 1) s
          ON s.subdbid OPERATOR(pg_catalog.=) d.oid
LEFT JOIN (SELECT database, pg_catalog.count(*)::int AS readers
           FROM pg_catalog.pg_replication_slots WHERE active GROUP BY 1) r
          ON r.database OPERATOR(pg_catalog.=) d.datname
ORDER BY d.datname"""
_FOOTHOLDS = """\
SELECT f.role::pg_catalog.text, pg_catalog.array_agg(DISTINCT f.database::pg_catalog.text),
       pg_catalog.array_agg(DISTINCT f.database::pg_catalog.text) FILTER (WHERE f.is_estate)
FROM (SELECT r.rolname AS role, coalesce(d.datname, pg_catalog.current_database()) AS database,
             s.deptype OPERATOR(pg_catalog.=) 'o' AND s.classid OPERATOR(pg_catalog.<>) ALL (ARRAY[
                 'pg_catalog.pg_database'::pg_catalog.regclass, 'pg_catalog.pg_default_acl'::pg_catalog.regclass,
                 'pg_catalog.pg_user_mapping'::pg_catalog.regclass]) AS is_estate
      FROM pg_catalog.pg_authid r
      JOIN pg_catalog.pg_shdepend s ON s.refobjid OPERATOR(pg_catalog.=) r.oid
           AND s.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass
      LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.dbid
      WHERE r.rolname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[])
        AND s.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_auth_members'::pg_catalog.regclass
      UNION ALL
      SELECT p.owner, p.database, false FROM pg_catalog.pg_prepared_xacts p
      WHERE p.owner OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[])) f
GROUP BY 1"""
_SUBSCRIBERS = """\
SELECT r.rolname::pg_catalog.text, pg_catalog.array_agg(DISTINCT d.datname::pg_catalog.text)
FROM pg_catalog.pg_subscription s
JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) s.subowner
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.subdbid
WHERE r.rolname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[]) GROUP BY 1"""
_REACHING_OUT = """\
SELECT m.rolname::pg_catalog.text, g.rolname::pg_catalog.text FROM pg_catalog.pg_auth_members a
JOIN pg_catalog.pg_authid g ON g.oid OPERATOR(pg_catalog.=) a.roleid
JOIN pg_catalog.pg_authid m ON m.oid OPERATOR(pg_catalog.=) a.member
WHERE NOT m.rolsuper AND g.rolname OPERATOR(pg_catalog.=)
      ANY ('{pg_execute_server_program,pg_read_server_files,pg_write_server_files}'::pg_catalog.name[])
GROUP BY 1, 2 ORDER BY 1, 2"""
_EXTENSIONS = """\
SELECT e.extname::pg_catalog.text, n.nspname::pg_catalog.text, e.extrelocatable,
       e.extversion OPERATOR(pg_catalog.=) coalesce(a.default_version, e.extversion), o.rolsuper
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_authid o ON o.oid OPERATOR(pg_catalog.=) e.extowner
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
LEFT JOIN pg_catalog.pg_available_extensions() a ON a.name OPERATOR(pg_catalog.=) e.extname"""
_AVAILABLE = "SELECT name::pg_catalog.text FROM pg_catalog.pg_available_extensions()"
_MARKER = f"SELECT timeline_id FROM {MARKER_TABLE} WHERE id OPERATOR(pg_catalog.=) 1"
_LAKEBASE = """\
SELECT {grants},
       (SELECT prosrc FROM pg_catalog.pg_proc WHERE oid OPERATOR(pg_catalog.=)
        pg_catalog.to_regprocedure('public.health_check_write_succeeds()')::pg_catalog.oid)
FROM (SELECT (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) %s) AS oid) m"""

Notes = dict[int, dict[str, str]]


async def read_snapshot(connection: Connection, wanted: Wanted) -> Snapshot:
    """Return what exists, in a handful of queries whatever the number of roles and databases."""
    ((major, database, libraries, audit_silenced),) = await connection.rows(_FACTS)
    written = {oid: dict(notes.parsed(settings)) for oid, settings in await connection.rows(_NOTES)}
    has_notes = any(written.values())
    tables = await former_tables(connection, FORMER_TABLES)
    leaving = _leaving(wanted)
    footholds = await connection.rows(_FOOTHOLDS, leaving, leaving) if leaving else []
    subscribers = await connection.rows(_SUBSCRIBERS, leaving) if leaving else []
    roles = await _read_roles(connection, wanted, leaving)
    names = {facts.oid: name for name, facts in roles.items()}
    grants = ", ".join(grant.held for grant in GRANTS)
    lakebase = (await connection.rows(_LAKEBASE.format(grants=grants), MONITOR))[0] if wanted.lakebase else None
    return Snapshot(
        major=major,
        system_database=database,
        roles=roles,
        databases=await _read_databases(connection, wanted, written, names),
        footholds={role: frozenset(places) for role, places, _ in footholds},
        subscribers={role: frozenset(places) for role, places in subscribers},
        estates={role: frozenset(places or ()) for role, _, places in footholds},
        extensions={name: ExtensionFacts(*facts) for name, *facts in await connection.rows(_EXTENSIONS)},
        available_extensions=frozenset(name for (name,) in await connection.rows(_AVAILABLE)),
        schemas={
            name: SchemaFacts(owner, is_ours, tuple(open_to))
            for name, owner, is_ours, open_to in await connection.rows(SCHEMAS)
        },
        libraries=split_libraries(libraries),
        former_tables={table.name: table.oid if _is_usable(table) else 0 for table in tables},
        audit_silenced=audit_silenced,
        dropped_subscriptions_of=(
            written.get(0, {}).get(notes.SUBSCRIPTIONS_DROPPED) if has_notes else await _read_marker(connection, tables)
        ),
        has_notes=has_notes,
        reaching_out=tuple(await connection.rows(_REACHING_OUT)),
        platform_roles=_platform_roles(written.get(0, {}), names),
        monitor_grants={} if lakebase is None else {g.what: held for g, held in zip(GRANTS, lakebase, strict=False)},
        write_check=None if lakebase is None else lakebase[-1],
    )


def _is_usable(table: FormerTable) -> bool:
    """Tell whether a table is ours to write to; the one in public, where others can replace it, is only dropped."""
    return table.is_ours if table.name == HEALTH_CHECK else table.is_trustworthy


def _leaving(wanted: Wanted) -> list[str]:
    """Return the roles to be deleted; one that is renamed before has its footholds under the old name yet."""
    leaving = wanted.subjects("delete_role")
    return leaving + wanted.subjects("rename_role") if leaving else []


async def _read_roles(connection: Connection, wanted: Wanted, leaving: list[str]) -> dict[str, RoleFacts]:
    name = wanted.privileged_role
    groups = {name: frozenset(group for (group,) in await connection.rows(_MEMBERSHIPS, name))}
    if leaving:
        groups |= {role: frozenset(powers) for role, powers in await connection.rows(_POWERS, leaving)}
    return {
        name: RoleFacts(
            password, frozenset(attributes), groups.get(name, frozenset()), frozenset(settings), oid, is_superuser
        )
        for name, password, attributes, settings, oid, is_superuser in await connection.rows(_ROLES)
    }


async def _read_databases(
    connection: Connection, wanted: Wanted, written: Notes, names: dict[int, str]
) -> dict[str, DatabaseFacts]:
    found = {}
    for name, *facts in await connection.rows(_DATABASES, wanted.privileged_role):
        owner, connectable, invalid, template, granted, subscriptions, oid, readers, limit = facts
        noted = written.get(oid, {})
        found[name] = DatabaseFacts(
            owner=owner,
            connectable=connectable,
            invalid=invalid,
            template=template,
            granted=bool(granted),
            subscriptions=subscriptions,
            prepared=noted.get(notes.PREPARED),
            readers=readers,
            oid=oid,
            limit=limit,
            subscriptions_pending=noted.get(notes.SUBSCRIPTIONS_PENDING),
            heir=names.get(int(noted.get(notes.HEIR, 0))),
            reserved=noted.get(notes.RESERVED),
        )
    return found


async def _read_marker(connection: Connection, tables: list[FormerTable]) -> str | None:
    """Return for which timeline the original says that it dropped subscriptions, None if that cannot be believed."""
    if not any(table.name == MARKER_TABLE and table.is_trustworthy for table in tables):
        return None
    rows = await read_unless_locked(connection, MARKER_TABLE, _MARKER)
    return rows[0][0] if rows else None


def _platform_roles(cluster_notes: dict[str, str], names: dict[int, str]) -> frozenset[str]:
    oids = cluster_notes.get(notes.PLATFORM_ROLES, "").split(",")
    return frozenset(names[int(oid)] for oid in oids if oid.isdigit() and int(oid) in names)
