"""Phases about databases as a whole, from the system database (contract 05 §7)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from trio_compute.model.spec import Database
from trio_compute.plan.catalog import departures, notes
from trio_compute.plan.catalog.operations import Operation, Subject
from trio_compute.plan.catalog.options import database_words, template_of
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

IN_USE = frozenset({"55006"})  # somebody is connected to the database, or to the template of a new one (K-26)
_END_REPLICATION = """\
SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
WHERE active AND database OPERATOR(pg_catalog.=) {name}"""
_CLOSED = "closed"
GONE = frozenset({"3D000"})


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
        occupied=name,
        at_once=True,
    )


def _renaming(old: str, new: str, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    if old in state.databases and new not in state.databases:
        state.databases[new] = state.databases.pop(old)
        for held in (state.footholds, state.estates):
            held |= {role: places - {old} | {new} for role, places in held.items() if old in places}
        yield Operation(
            what=f"rename database {old} to {new}",
            why="delta operation rename_db",
            statement=f"ALTER DATABASE {identifier(old)} RENAME TO {identifier(new)}",
            subject=Subject("database", old),
            retried=IN_USE,
            occupied=old,
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
        occupied=template_of(database),
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


def open_closed_databases(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan that closed databases can be entered, by us alone, where a deletion needs it (T-17)."""
    deleted = [name for name in to_be_deleted(wanted, state) if state.databases[name].subscriptions]
    for name in dict.fromkeys([*departures.places(wanted, state), *deleted]):
        facts = state.databases.get(name)
        if facts is None or facts.invalid or facts.connectable:
            continue
        state.databases[name] = structs.replace(
            facts, connectable=True, reserved=facts.reserved or f"{facts.limit},{_CLOSED}"
        )
        subject, why = Subject("database", name), "a deletion has to reach what is in it"
        steps = {
            f"note that database {name} is closed": notes.note(
                notes.RESERVED, str(state.databases[name].reserved), database=name
            ),
            f"let nobody but superusers into database {name}": (
                f"ALTER DATABASE {identifier(name)} CONNECTION LIMIT 0"
            ),
            f"open database {name}": f"ALTER DATABASE {identifier(name)} ALLOW_CONNECTIONS true",
        }
        for what, statement in steps.items():
            yield Operation(what=what, why=why, statement=statement, subject=subject)


def release_databases(_wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan that databases which were open for us alone, also in an apply that was cut, are again what they were."""
    for name, facts in list(state.databases.items()):
        if facts.reserved is None:
            continue
        limit, _, was = facts.reserved.partition(",")
        connectable = facts.connectable and was != _CLOSED
        state.databases[name] = structs.replace(facts, reserved=None, limit=int(limit), connectable=connectable)
        subject, why = Subject("database", name), "it was open for the compute alone"
        steps = {f"give database {name} its connection limit": f"CONNECTION LIMIT {int(limit)}"}
        if was == _CLOSED:
            steps = {f"close database {name}": "ALLOW_CONNECTIONS false"} | steps
        for what, words in steps.items():
            statement = f"ALTER DATABASE {identifier(name)} {words}"
            yield Operation(what=what, why=why, statement=statement, subject=subject, tolerated=GONE)
        statement = notes.forget(notes.RESERVED, name)
        yield Operation(
            what=f"forget what database {name} was", why=why, statement=statement, subject=subject, tolerated=GONE
        )


def as_before_reservation(state: Snapshot) -> None:
    """Count databases that a cut apply left open for us as what they are to everybody else."""
    for name, facts in state.databases.items():
        if facts.reserved is not None:
            is_closed = facts.reserved.endswith(_CLOSED)
            state.databases[name] = structs.replace(facts, connectable=facts.connectable and not is_closed)
