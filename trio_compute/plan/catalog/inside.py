"""What happens inside each database (contract 05 §8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from msgspec import structs

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.foreign_grants import foreign_grants
from trio_compute.plan.catalog.operations import Operation, Phase, Subject
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

# Counts up when the work below changes, so that databases that were prepared by an older version are prepared again.
PREPARATION = 1
GONE = frozenset({"3D000", "42704"})
_PUBLIC_EXISTS = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'public'"

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


def role_references(name: str, wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan that nothing in a database belongs to a role that goes, nor is granted to it (K-19, K-20)."""
    if name == state.system_database:
        new_owner = catalog_rules.SUPERUSER
    else:
        # Not the superuser where it can be helped: a function that runs as its owner would then run as that one.
        new_owner = wanted.owner_of(name) or state.databases[name].owner
    for role in wanted.subjects("delete_role"):
        if name in state.footholds.get(role, ()):
            state.footholds[role] -= {name}
            yield from _reference_operations(role, new_owner, foreign_grants(role, state, name))


def delete_role_references(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the phase of the same name."""
    operations = tuple(role_references(name, wanted, state))
    return Phase("DeleteDBRoleReferences", operations) if operations else None


def _reference_operations(role: str, new_owner: str, grants: str) -> Iterator[Operation]:
    subject, why = Subject("role", role), "delta operation delete_role"
    yield Operation(
        what=f"give what role {role} owns to {new_owner}",
        why=why,
        statement=f"REASSIGN OWNED BY {identifier(role)} TO {identifier(new_owner)}",
        subject=subject,
    )
    yield Operation(
        what=f"revoke privileges that others gave role {role}",
        why=why,
        statement=grants,
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
    parts = (PREPARATION, state.major, wanted.owner_of(name), wanted.privileged_role, _lets_create(wanted, state))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _lets_create(wanted: Wanted, state: Snapshot) -> bool:
    """Tell whether there is a role web_access, and still will be after this apply."""
    return state.major >= 15 and "web_access" in state.roles and "web_access" not in wanted.subjects("delete_role")


def change_schema_permissions(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the owner and the default privileges of schema public."""
    facts, owner, mark = state.databases[name], wanted.owner_of(name), preparation(name, wanted, state)
    if owner is None or facts.prepared == mark:
        return None
    state.databases[name] = structs.replace(facts, prepared=mark, noted=False)
    former = ", ".join(map(literal, (catalog_rules.SUPERUSER, catalog_rules.FORMER_SUPERUSER)))
    operations = [
        Operation(
            what=f"give schema public of database {name} to {owner}",
            why="the owner of a database may create in it",
            statement=f"ALTER SCHEMA public OWNER TO {identifier(owner)}",
            subject=Subject("database", name),
            only_if=f"{_PUBLIC_EXISTS} AND pg_catalog.pg_get_userbyid(nspowner) IN ({former})",
        )
    ]
    if _lets_create(wanted, state):
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
