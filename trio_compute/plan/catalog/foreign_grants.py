"""The query for what was granted to a role, and how to revoke it (contract 05 K-19)."""

from __future__ import annotations

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.plan.catalog.snapshot import Snapshot

# Each row revokes what one grantor gave on one object. What the owner gave, a superuser may revoke as itself; for all
# else it acts as the grantor, who may have lost the schema since. The privileges are named, since for ALL Postgres
# would rather act for a group of that role which holds more of them.
_QUERY = """\
SELECT CASE WHEN grantor OPERATOR(pg_catalog.=) owner
       THEN pg_catalog.format('REVOKE %s ON %s FROM %I CASCADE', privileges, target, leaver)
       ELSE pg_catalog.concat(
           CASE WHEN is_walled THEN pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %I; ',
                                                      namespace::pg_catalog.regnamespace, rolname) END,
           pg_catalog.format('SET LOCAL ROLE %I; REVOKE %s ON %s FROM %I CASCADE; SET LOCAL ROLE {superuser}',
                             rolname, privileges, target, leaver),
           CASE WHEN is_walled THEN pg_catalog.format('; REVOKE USAGE ON SCHEMA %s FROM %I',
                                                      namespace::pg_catalog.regnamespace, rolname) END)
       END
FROM (
    SELECT given.target, given.owner, given.namespace, entry.grantor, r.rolname, leaver.rolname AS leaver,
           pg_catalog.string_agg(DISTINCT pg_catalog.concat(entry.privilege_type, given.columns), ', ') AS privileges,
           given.namespace OPERATOR(pg_catalog.<>) 0 AND NOT CASE WHEN given.namespace OPERATOR(pg_catalog.<>) 0
               THEN pg_catalog.has_schema_privilege(r.oid, given.namespace, 'USAGE') ELSE true END AS is_walled
    FROM ({given}) AS given (target, columns, acl, owner, namespace)
    CROSS JOIN LATERAL pg_catalog.aclexplode(given.acl) AS entry
    JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) entry.grantor
    JOIN pg_catalog.pg_authid leaver ON leaver.oid OPERATOR(pg_catalog.=) entry.grantee
    WHERE entry.grantee OPERATOR(pg_catalog.=) {role} AND entry.grantor OPERATOR(pg_catalog.<>) entry.grantee
    GROUP BY given.target, given.owner, given.namespace, entry.grantor, r.oid, r.rolname, leaver.rolname
) AS found
ORDER BY target, rolname"""
_CLASSES = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
_LOCAL = (
    f"""\
    SELECT pg_catalog.format('%s %I.%I', CASE WHEN relkind OPERATOR(pg_catalog.=) 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
                             n.nspname, c.relname), '',
           c.relacl, c.relowner, n.oid
    FROM {_CLASSES}""",
    f"""\
    SELECT pg_catalog.format('TABLE %I.%I', n.nspname, c.relname), pg_catalog.format(' (%I)', a.attname),
           a.attacl, c.relowner, n.oid
    FROM {_CLASSES} JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
    WHERE NOT a.attisdropped AND a.attacl IS NOT NULL""",
    """\
    SELECT pg_catalog.format('ROUTINE %I.%I(%s)', n.nspname, p.proname,
                             pg_catalog.pg_get_function_identity_arguments(p.oid)), '', p.proacl, p.proowner, n.oid
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE p.proacl IS NOT NULL""",
    """\
    SELECT pg_catalog.format('TYPE %I.%I', n.nspname, t.typname), '', t.typacl, t.typowner, n.oid
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
    WHERE t.typacl IS NOT NULL""",
    "SELECT pg_catalog.format('SCHEMA %I', nspname), '', nspacl, nspowner, 0 FROM pg_catalog.pg_namespace",
    "SELECT pg_catalog.format('LANGUAGE %I', lanname), '', lanacl, lanowner, 0 FROM pg_catalog.pg_language",
    "SELECT pg_catalog.format('FOREIGN SERVER %I', srvname), '', srvacl, srvowner, 0 FROM pg_catalog.pg_foreign_server",
    """\
    SELECT pg_catalog.format('FOREIGN DATA WRAPPER %I', fdwname), '', fdwacl, fdwowner, 0
    FROM pg_catalog.pg_foreign_data_wrapper""",
    """\
    SELECT pg_catalog.format('LARGE OBJECT %s', oid), '', lomacl, lomowner, 0
    FROM pg_catalog.pg_largeobject_metadata""",
)
_SHARED = (
    "SELECT pg_catalog.format('DATABASE %I', datname), '', datacl, datdba, 0 FROM pg_catalog.pg_database",
    "SELECT pg_catalog.format('TABLESPACE %I', spcname), '', spcacl, spcowner, 0 FROM pg_catalog.pg_tablespace",
)
_PARAMETERS = "SELECT pg_catalog.format('PARAMETER %I', parname), '', paracl, 10, 0 FROM pg_catalog.pg_parameter_acl"


def foreign_grants(role: int, state: Snapshot, database: str) -> str:
    """Return the query for one database; that of the connection URL answers for shared objects too."""
    given = list(_LOCAL)
    if database == state.system_database:
        given += [*_SHARED, *([_PARAMETERS] if state.major >= 15 else [])]
    return _QUERY.format(
        given="\n    UNION ALL\n".join(given), role=role, superuser=identifier(catalog_rules.SUPERUSER)
    )
