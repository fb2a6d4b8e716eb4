"""Statements that bring roles and databases to the wanted state: the minimal first part of contract 05.

Planned here: the privileged role, missing or changed roles, missing databases and changed owners. Delta operations,
per-database work, extensions and migrations are not planned yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model.spec import Cluster, Database, GenericOption, Role

if TYPE_CHECKING:
    from psycopg import sql

MAX_NAME_BYTES = 63

# Exactly one word or number: `5--` would comment out the rest of the statement.
_BARE_VALUE = re.compile(r"\A(?:[A-Za-z_][A-Za-z0-9_]*|-?[0-9]+(?:\.[0-9]+)?)\Z")


class Catalog(Struct, frozen=True):
    """Hold what exists: stored passwords by role name, owners by database name."""

    role_passwords: Mapping[str, str | None]
    database_owners: Mapping[str, str]


class Statement(Struct, frozen=True):
    """Hold one statement and a reason that may be logged; the statement itself may contain a password."""

    query: sql.Composed
    why: str


def plan_catalog(cluster: Cluster, privileged_role: str, catalog: Catalog) -> list[Statement]:
    """Return what must be executed, in order; nothing when the catalog is as wanted."""
    _check_names(cluster)
    return [
        *_privileged_role(privileged_role, catalog),
        *(s for role in cluster.roles for s in _role(role, privileged_role, catalog)),
        *(s for database in cluster.databases for s in _database(database, privileged_role, catalog)),
    ]


def stored_password(role: Role) -> str | None:
    """Return the password as Postgres stores it: SCRAM verifiers as they are, md5 hashes with their prefix."""
    text = role.encrypted_password
    if text is None or text.startswith("SCRAM-SHA-256"):
        return text
    return f"md5{text}"


def _check_names(cluster: Cluster) -> None:
    names = (
        *(("role", role.name) for role in cluster.roles),
        *(("database", database.name) for database in cluster.databases),
        *(("database owner", database.owner) for database in cluster.databases),
    )
    for kind, name in names:
        if not name or "\0" in name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise SpecError(f"{kind} name {name[:80]!r} must have 1 to {MAX_NAME_BYTES} bytes and no NUL")


def _literal(value: str, what: str) -> sql.Literal:
    from psycopg import sql

    if "\0" in value:
        raise SpecError(f"{what} holds a NUL character")
    return sql.Literal(value)


def _privileged_role(name: str, catalog: Catalog) -> Iterator[Statement]:
    from psycopg import sql

    if name not in catalog.role_passwords:
        yield Statement(
            sql.SQL(
                "CREATE ROLE {} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS "
                "IN ROLE pg_read_all_data, pg_write_all_data"
            ).format(sql.Identifier(name)),
            f"create privileged role {name}",
        )


def _role(role: Role, privileged_role: str, catalog: Catalog) -> Iterator[Statement]:
    from psycopg import sql

    wanted = stored_password(role)
    name = sql.Identifier(role.name)
    literal = sql.SQL("NULL") if wanted is None else _literal(wanted, f"password of role {role.name!r}")
    password = sql.SQL("LOGIN PASSWORD {}").format(literal)
    options = [*_options(role.options), password]
    if role.name not in catalog.role_passwords:
        attributes = sql.SQL("INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE {}").format(
            sql.Identifier(privileged_role)
        )
        query = sql.SQL("CREATE ROLE {} ").format(name) + sql.SQL(" ").join([attributes, *options])
        yield Statement(query, f"create role {role.name}")
    elif catalog.role_passwords[role.name] != wanted:
        yield Statement(sql.SQL("ALTER ROLE {} ").format(name) + sql.SQL(" ").join(options), f"alter role {role.name}")


def _database(database: Database, privileged_role: str, catalog: Catalog) -> Iterator[Statement]:
    from psycopg import sql

    name, owner = sql.Identifier(database.name), sql.Identifier(database.owner)
    if database.name not in catalog.database_owners:
        options = [*_options(database.options), sql.SQL("OWNER {}").format(owner)]
        query = sql.SQL("CREATE DATABASE {} ").format(name) + sql.SQL(" ").join(options)
        yield Statement(query, f"create database {database.name}")
        grant = sql.SQL("GRANT ALL PRIVILEGES ON DATABASE {} TO {}").format(name, sql.Identifier(privileged_role))
        yield Statement(grant, f"grant database {database.name}")
    elif catalog.database_owners[database.name] != database.owner:
        query = sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner)
        yield Statement(query, f"change owner of database {database.name}")


def _options(options: list[GenericOption] | None) -> Iterator[sql.Composable]:
    from psycopg import sql

    for option in options or ():
        if not option.name.replace(" ", "").replace("_", "").isalnum():
            raise SpecError(f"option {option.name!r} is not a valid name")
        words: list[sql.Composable] = [sql.SQL(option.name)]  # checked above: words only
        if option.value is not None:
            words.append(_option_value(option))
        yield sql.SQL(" ").join(words)


def _option_value(option: GenericOption) -> sql.Composable:
    from psycopg import sql

    value = option.value or ""
    if option.vartype != "string" and _BARE_VALUE.match(value):
        return sql.SQL(value)  # a bare word or number, checked above
    return _literal(value, f"option {option.name!r}")
