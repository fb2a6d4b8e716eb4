"""The query for what others than the superuser granted to a role, and how to revoke it (contract 05 K-19)."""

from __future__ import annotations

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import Snapshot

# Each row revokes what one grantor gave on one object. What the owner gave, a superuser may revoke as itself; for all
# else it acts as the grantor, who may have lost the schema since. The privileges are named, since for ALL Postgres
# would rather act for a group of that role which holds more of them.
_QUERY = """\
SELECT CASE WHEN grantor = owner THEN format('REVOKE %s ON %s FROM %I CASCADE', privileges, target, {role})
       ELSE CASE WHEN is_walled THEN format('GRANT USAGE ON SCHEMA %s TO %I; ', namespace::regnamespace, rolname)
            ELSE '' END
         || format('SET LOCAL ROLE %I; REVOKE %s ON %s FROM %I CASCADE; SET LOCAL ROLE {superuser}',
                   rolname, privileges, target, {role})
         || CASE WHEN is_walled THEN format('; REVOKE USAGE ON SCHEMA %s FROM %I', namespace::regnamespace, rolname)
            ELSE '' END
       END
FROM (
    SELECT given.target, given.owner, given.namespace, entry.grantor, r.rolname,
           string_agg(DISTINCT entry.privilege_type || given.columns, ', ') AS privileges,
           given.namespace <> 0 AND NOT has_schema_privilege(r.oid, nullif(given.namespace, 0), 'USAGE') AS is_walled
    FROM ({given}) AS given (target, columns, acl, owner, namespace)
    CROSS JOIN LATERAL pg_catalog.aclexplode(given.acl) AS entry
    JOIN pg_catalog.pg_roles r ON r.oid = entry.grantor
    WHERE entry.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = {role})
      AND entry.grantor <> entry.grantee AND r.rolname <> {superuser_text}
    GROUP BY given.target, given.owner, given.namespace, entry.grantor, r.oid, r.rolname
) AS found
ORDER BY target, rolname"""
_LOCAL = (
    """\
    SELECT format('%s %I.%I', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname), '',
           c.relacl, c.relowner, n.oid
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace""",
    """\
    SELECT format('TABLE %I.%I', n.nspname, c.relname), format(' (%I)', a.attname), a.attacl, c.relowner, n.oid
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT a.attisdropped""",
    """\
    SELECT format('ROUTINE %I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), '',
           p.proacl, p.proowner, n.oid
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace""",
    """\
    SELECT format('TYPE %I.%I', n.nspname, t.typname), '', t.typacl, t.typowner, n.oid
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace""",
    "SELECT format('SCHEMA %I', nspname), '', nspacl, nspowner, 0 FROM pg_catalog.pg_namespace",
    "SELECT format('LANGUAGE %I', lanname), '', lanacl, lanowner, 0 FROM pg_catalog.pg_language",
    "SELECT format('FOREIGN SERVER %I', srvname), '', srvacl, srvowner, 0 FROM pg_catalog.pg_foreign_server",
    """\
    SELECT format('FOREIGN DATA WRAPPER %I', fdwname), '', fdwacl, fdwowner, 0
    FROM pg_catalog.pg_foreign_data_wrapper""",
    "SELECT format('LARGE OBJECT %s', oid), '', lomacl, lomowner, 0 FROM pg_catalog.pg_largeobject_metadata",
)
_SHARED = (
    "SELECT format('DATABASE %I', datname), '', datacl, datdba, 0 FROM pg_catalog.pg_database",
    "SELECT format('TABLESPACE %I', spcname), '', spcacl, spcowner, 0 FROM pg_catalog.pg_tablespace",
)
_PARAMETERS = "SELECT format('PARAMETER %I', parname), '', paracl, 10, 0 FROM pg_catalog.pg_parameter_acl"


def foreign_grants(role: str, state: Snapshot, database: str) -> str:
    """Return the query for one database; that of the connection URL answers for shared objects too."""
    given = list(_LOCAL)
    if database == state.system_database:
        given += [*_SHARED, *([_PARAMETERS] if state.major >= 15 else [])]
    return _QUERY.format(
        given="\n    UNION ALL\n".join(given),
        role=literal(role),
        superuser=identifier(catalog_rules.SUPERUSER),
        superuser_text=literal(catalog_rules.SUPERUSER),
    )
