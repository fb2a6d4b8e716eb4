"""Phases about databases as a whole, from the system database (contract 05 §7)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from trio_compute.model import catalog_rules
from trio_compute.model.spec import Database
from trio_compute.plan.catalog.operations import Operation, Subject
from trio_compute.plan.catalog.options import database_words
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

IN_USE = frozenset({"55006"})  # somebody is connected to the database, or to the template of a new one (K-26)
_END_REPLICATION = """\
SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
WHERE active AND database = {name}"""


def drop_invalid_databases(_wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the removal of what an interrupted DROP DATABASE left (K-25)."""
    for name in [name for name, facts in state.databases.items() if facts.invalid]:
        del state.databases[name]
        yield _drop(name, "an interrupted drop left it invalid")


def rename_and_delete_databases(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan delta operations about databases, in their order; what the spec lists is not dropped (K-37)."""
    for operation in wanted.delta:
        name, new = operation.name, operation.new_name
        if name == state.system_database and operation.action.endswith("_db"):
            warnings.append(f"database {name!r} is the one that the compute works from; it stays as it is")
        elif operation.action == "delete_db" and name in state.databases and wanted.owner_of(name) is None:
            yield from _deletion(name, state.databases.pop(name))
        elif operation.action == "rename_db" and new is not None:
            yield from _renaming(name, new, state, warnings)


def to_be_deleted(wanted: Wanted, state: Snapshot) -> list[str]:
    """Return which databases will be deleted, by their present names: some are renamed before."""
    present = {name: name for name in state.databases if name != state.system_database}
    deleted = []
    for operation in wanted.delta:
        name, new = operation.name, operation.new_name
        if operation.action == "delete_db" and name in present and wanted.owner_of(name) is None:
            deleted.append(present.pop(name))
        elif operation.action == "rename_db" and name in present and new is not None and new not in present:
            present[new] = present.pop(name)
    return deleted


def _deletion(name: str, facts: DatabaseFacts) -> Iterator[Operation]:
    if facts.template:
        yield Operation(
            what=f"make database {name} no template",
            why="a template cannot be dropped",
            statement=f"ALTER DATABASE {identifier(name)} IS_TEMPLATE false",
            subject=Subject("database", name),
        )
    if facts.readers:
        yield from _no_more_readers(name)
    yield _drop(name, "delta operation delete_db", retried=IN_USE if facts.readers else frozenset())


def _no_more_readers(name: str) -> Iterator[Operation]:
    """Plan the end of logical replication from a database, which even a forced drop does not bring about."""
    subject, why = Subject("database", name), "somebody reads from a replication slot of it"
    yield Operation(
        what=f"close database {name}",
        why=why,
        statement=f"ALTER DATABASE {identifier(name)} ALLOW_CONNECTIONS false",
        subject=subject,
    )
    yield Operation(
        what=f"end replication from database {name}",
        why=why,
        statement=_END_REPLICATION.format(name=literal(name)),
        subject=subject,
    )


def _drop(name: str, why: str, *, retried: frozenset[str] = frozenset()) -> Operation:
    return Operation(
        what=f"drop database {name}",
        why=why,
        statement=f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)",
        subject=Subject("database", name),
        retried=retried,
    )


def _renaming(old: str, new: str, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    if old in state.databases and new not in state.databases:
        state.databases[new] = state.databases.pop(old)
        state.footholds = {
            role: places - {old} | {new} if old in places else places for role, places in state.footholds.items()
        }
        yield Operation(
            what=f"rename database {old} to {new}",
            why="delta operation rename_db",
            statement=f"ALTER DATABASE {identifier(old)} RENAME TO {identifier(new)}",
            subject=Subject("database", old),
            retried=IN_USE,
        )
    elif old in state.databases or new not in state.databases:
        both = "both exist" if old in state.databases else "neither exists"
        warnings.append(f"database {old!r} is not renamed to {new!r}: {both}")


def create_and_alter_databases(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan new databases, changed owners, and privileges that a crash kept from being granted (K-29)."""
    for database in wanted.databases:
        facts = state.databases.get(database.name)
        if facts is None:
            facts = DatabaseFacts(database.owner, granted=False)
            yield _creation(database)
        elif facts.owner != database.owner:
            yield _new_owner(database.name, database.owner, f"it belongs to {facts.owner}")
        if not facts.granted:
            yield _grant(database.name, wanted.privileged_role)
        state.databases[database.name] = structs.replace(facts, owner=database.owner, granted=True)


def _creation(database: Database) -> Operation:
    return Operation(
        what=f"create database {database.name}",
        why="it does not exist",
        statement=f"CREATE DATABASE {identifier(database.name)} {database_words(database)}",
        subject=Subject("database", database.name),
        retried=IN_USE,
    )


def _new_owner(name: str, owner: str, why: str) -> Operation:
    return Operation(
        what=f"give database {name} to {owner}",
        why=why,
        statement=f"ALTER DATABASE {identifier(name)} OWNER TO {identifier(owner)}",
        subject=Subject("database", name),
    )


def _grant(name: str, privileged_role: str) -> Operation:
    return Operation(
        what=f"grant all on database {name} to {privileged_role}",
        why="the privileged role lacks privileges on it",
        statement=f"GRANT ALL PRIVILEGES ON DATABASE {identifier(name)} TO {identifier(privileged_role)}",
        subject=Subject("database", name),
    )


def take_from_deleted_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan new owners for databases that no spec lists and whose owner goes (K-21)."""
    deleted = {name for name in wanted.subjects("delete_role") if name in state.roles}
    for name, facts in list(state.databases.items()):
        if facts.owner in deleted:
            state.databases[name] = structs.replace(facts, owner=catalog_rules.SUPERUSER)
            yield _new_owner(name, catalog_rules.SUPERUSER, f"its owner {facts.owner} is to be deleted")
