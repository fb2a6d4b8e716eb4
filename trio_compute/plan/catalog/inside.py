"""What happens inside each database (contract 05 §8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from msgspec import structs

from trio_compute.model.catalog_rules import FORMER_SUPERUSER, SUPERUSER
from trio_compute.plan.catalog.operations import Operation, Phase, Subject
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

# Counts up when the work below changes, so that databases that were prepared by an older version are prepared again.
PREPARATION = 1
GONE = frozenset({"3D000", "42704"})
_PUBLIC_EXISTS = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'public'"

# Each row revokes what one grantor gave one grantee on one object. Only the grantor may, so it acts as that role; it
# names the privileges, since for ALL Postgres would rather act for a group of that role which holds more of them.
_FOREIGN_GRANTS = """\
SELECT format('SET LOCAL ROLE %1$I; REVOKE %2$s ON %3$s FROM %4$I CASCADE; SET LOCAL ROLE {superuser}',
              grantor.rolname, string_agg(DISTINCT entry.privilege_type || given.columns, ', '), given.target,
              grantee.rolname)
FROM (
    SELECT format('%s %I.%I', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname) AS target,
           '' AS columns, c.relacl AS acl
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT format('TABLE %I.%I', n.nspname, c.relname), format(' (%I)', a.attname), a.attacl
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT a.attisdropped
    UNION ALL
    SELECT format('ROUTINE %I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)), '',
           p.proacl
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    UNION ALL
    SELECT format('SCHEMA %I', nspname), '', nspacl FROM pg_catalog.pg_namespace
    UNION ALL
    SELECT format('TYPE %I.%I', n.nspname, t.typname), '', t.typacl
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    UNION ALL
    SELECT format('LANGUAGE %I', lanname), '', lanacl FROM pg_catalog.pg_language
    UNION ALL
    SELECT format('FOREIGN SERVER %I', srvname), '', srvacl FROM pg_catalog.pg_foreign_server
    UNION ALL
    SELECT format('FOREIGN DATA WRAPPER %I', fdwname), '', fdwacl FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL
    SELECT format('LARGE OBJECT %s', oid), '', lomacl FROM pg_catalog.pg_largeobject_metadata
) AS given
CROSS JOIN LATERAL pg_catalog.aclexplode(given.acl) AS entry
JOIN pg_catalog.pg_roles grantor ON grantor.oid = entry.grantor
JOIN pg_catalog.pg_roles grantee ON grantee.oid = entry.grantee
WHERE grantee.rolname = {role} AND grantor.rolname <> {role} AND grantor.rolname <> {superuser_text}
GROUP BY grantor.rolname, given.target, grantee.rolname"""

_SUBSCRIPTIONS = """\
SELECT format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); '
              'DROP SUBSCRIPTION %1$I', subname)
FROM pg_catalog.pg_subscription
WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"""


def is_open(facts: DatabaseFacts | None) -> bool:
    """Tell whether one can connect to a database."""
    return facts is not None and facts.connectable and not facts.invalid


def drop_subscriptions(name: str, state: Snapshot, why: str) -> Phase | None:
    """Plan the end of a database's logical subscriptions; their slots at the publisher are left alone."""
    facts = state.databases.get(name)
    if facts is None or not is_open(facts) or not facts.subscriptions:
        return None
    state.databases[name] = structs.replace(facts, subscriptions=0)
    operation = Operation(
        what=f"drop {facts.subscriptions} subscription(s) of database {name}",
        why=why,
        statement=_SUBSCRIPTIONS,
        subject=Subject("database", name),
        generates=True,
        lock="LOCK TABLE pg_catalog.pg_subscription IN ACCESS EXCLUSIVE MODE",
        tolerated=GONE,
    )
    return Phase("DropLogicalSubscriptions", (operation,))


def delete_role_references(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan that nothing in a database belongs to a role that goes, nor is granted to it (K-19, K-20)."""
    new_owner = SUPERUSER if name == state.system_database else wanted.owner_of(name) or SUPERUSER
    operations: list[Operation] = []
    for role in wanted.subjects("delete_role"):
        if name in state.footholds.get(role, ()):
            state.footholds[role] -= {name}
            operations += _reference_operations(role, new_owner)
    return Phase("DeleteDBRoleReferences", tuple(operations)) if operations else None


def _reference_operations(role: str, new_owner: str) -> Iterator[Operation]:
    subject, why = Subject("role", role), "delta operation delete_role"
    names = {"role": literal(role), "superuser": identifier(SUPERUSER), "superuser_text": literal(SUPERUSER)}
    yield Operation(
        what=f"give what role {role} owns to {new_owner}",
        why=why,
        statement=f"REASSIGN OWNED BY {identifier(role)} TO {identifier(new_owner)}",
        subject=subject,
    )
    yield Operation(
        what=f"revoke privileges that others gave role {role}",
        why=why,
        statement=_FOREIGN_GRANTS.format(**names),
        subject=subject,
        generates=True,
    )
    yield Operation(
        what=f"drop what else refers to role {role}",
        why=why,
        statement=f"DROP OWNED BY {identifier(role)}",
        subject=subject,
    )


def preparation(name: str, wanted: Wanted, state: Snapshot) -> str:
    """Return a mark of what a database is prepared for; an equal mark means that there is nothing to do (K-32)."""
    grants_create = state.major >= 15 and "web_access" in state.roles
    parts = (PREPARATION, state.major, wanted.owner_of(name), wanted.privileged_role, grants_create)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def change_schema_permissions(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the owner and the default privileges of schema public."""
    facts, owner, mark = state.databases[name], wanted.owner_of(name), preparation(name, wanted, state)
    if owner is None or facts.prepared == mark:
        return None
    state.databases[name] = structs.replace(facts, prepared=mark)
    former = f"{literal(SUPERUSER)}, {literal(FORMER_SUPERUSER)}"
    operations = [
        Operation(
            what=f"give schema public of database {name} to {owner}",
            why="the owner of a database may create in it",
            statement=f"ALTER SCHEMA public OWNER TO {identifier(owner)}",
            subject=Subject("database", name),
            only_if=f"{_PUBLIC_EXISTS} AND pg_catalog.pg_get_userbyid(nspowner) IN ({former})",
        )
    ]
    if state.major >= 15 and "web_access" in state.roles:
        operations.append(_on_public(name, "GRANT CREATE ON SCHEMA public TO web_access", "let web_access create"))
    operations += [
        _on_public(
            name,
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON {kind} "
            f"TO {identifier(wanted.privileged_role)} WITH GRANT OPTION",
            f"grant future {kind.lower()} to {wanted.privileged_role}",
        )
        for kind in ("TABLES", "SEQUENCES")
    ]
    return Phase("ChangeSchemaPerms", tuple(operations))


def _on_public(name: str, statement: str, what: str) -> Operation:
    return Operation(
        what=f"{what} in schema public of database {name}",
        why="this database has not been prepared, or for another owner",
        statement=statement,
        subject=Subject("database", name),
        only_if=_PUBLIC_EXISTS,
    )
