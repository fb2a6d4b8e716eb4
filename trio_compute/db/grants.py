"""Grant a role what it lacks on a schema (contract 06 §9, R-15; T-14, T-18)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trio_compute.db.maintenance import Connection
from trio_compute.db.request_session import READ_ONLY, as_stored, open_request_session
from trio_compute.db.turns import in_turn, repeated
from trio_compute.db.verdict import verdict
from trio_compute.deadlines import Deadlines
from trio_compute.errors import Conflicting, NotFound, SqlFailed
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.telemetry.logging import get_logger

_FOUND = """\
SELECT (SELECT oid FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) %s),
       (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) %s),
       pg_catalog.pg_is_in_recovery()"""
# What the schema's own list gives to the role itself, and what the role can do at all: through PUBLIC or as a member.
_PRIVILEGES = """\
SELECT wanted.name,
       EXISTS (SELECT FROM pg_catalog.pg_namespace n,
                      pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS entry
               WHERE n.oid OPERATOR(pg_catalog.=) %s AND entry.grantee OPERATOR(pg_catalog.=) %s
                 AND entry.privilege_type OPERATOR(pg_catalog.=) wanted.name),
       pg_catalog.has_schema_privilege(%s::pg_catalog.oid, %s::pg_catalog.oid, wanted.name)
FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS wanted(name)"""

log = get_logger("grants")


async def grant_on_schema(
    connstr: str, database: str, schema: str, role: str, privileges: Sequence[str], deadlines: Deadlines
) -> bool:
    """Grant `USAGE` and `CREATE` on a schema as far as they are missing; return whether anything had to be done.

    On a replica what the role has by other ways is enough, since nothing can be granted there. Raises NotFound for
    an unknown database, schema or role, Conflicting for all else that is not ours to mend, and other PostgresErrors.
    """
    try:
        # Two grants on one schema at the same time fail with an internal error of Postgres.
        turn = in_turn(connstr, database, "schema", schema)
        async with open_request_session(
            connstr, "set_role_grants", deadlines, database=database, turn=turn
        ) as connection:
            missing = await repeated(partial(_grant, connection, schema, role, privileges))
    except SqlFailed as error:
        if error.sqlstate == READ_ONLY:
            raise Conflicting(f"something is left to grant and the server is read-only: {error}") from None
        raise verdict(error) from None
    if missing:
        log.info("privileges granted", database=database, schema=schema, role=role, privileges=" ".join(missing))
    return bool(missing)


async def _grant(connection: Connection, schema: str, role: str, privileges: Sequence[str]) -> list[str]:
    async with connection.changes():
        missing = await _missing(connection, schema, role, privileges)
        if missing:
            words = ", ".join(missing)
            place = identifier(as_stored(connection, schema))
            await connection.rows(f"GRANT {words} ON SCHEMA {place} TO {identifier(role)}")
    return missing


async def _missing(connection: Connection, schema: str, role: str, privileges: Sequence[str]) -> list[str]:
    [(role_id, schema_id, is_replica)] = await connection.rows(_FOUND, role, as_stored(connection, schema))
    if schema_id is None:
        raise NotFound(f"schema {schema!r} does not exist")
    if role_id is None:
        raise NotFound(f"role {role!r} does not exist")
    wanted = list(dict.fromkeys(privileges))
    found = await connection.rows(_PRIVILEGES, schema_id, role_id, role_id, schema_id, wanted)
    return [name for name, direct, effective in found if not (direct or (is_replica and effective))]
