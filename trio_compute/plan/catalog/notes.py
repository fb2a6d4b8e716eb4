"""What we write down about a cluster where no tenant can write, hold or drop it (contract 11 T-04).

Notes are settings of the superuser role, in the cluster or in one database (`pg_db_role_setting`). Only a superuser can
change those, nobody else can lock them, they move with a database that is renamed and go with one that is dropped, a
copy made from a template does not have them, and all can be read from one place. Tables can do none of that: members of
pg_write_all_data may write and lock every table, and who owns a schema may drop what is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog.blocks import run_all
from trio_compute.plan.catalog.quoting import identifier, literal

PREFIX = "trio_compute."
PREPARED = f"{PREFIX}prepared"  # the mark of what the inside of a database was prepared for
SUBSCRIPTIONS_DROPPED = f"{PREFIX}subscriptions_dropped"  # in the cluster, for which timeline
SUBSCRIPTIONS_PENDING = f"{PREFIX}subscriptions_pending"  # but not yet in this database, for which timeline
HEIR = f"{PREFIX}heir"  # the oid of the role that gets what deleted roles leave in a database
RESERVED = f"{PREFIX}reserved"  # a database is shut for all but us: its own limit, and whether it was open
PLATFORM_ROLES = f"{PREFIX}platform_roles"  # the oids of roles that we made for the platform
MIGRATION = f"{PREFIX}migration"  # the number of the last migration that was run


def note(name: str, value: str, database: str | None = None) -> str:
    """Return the statement that writes a note, about the cluster or about one database."""
    place = "" if database is None else f" IN DATABASE {identifier(database)}"
    return f"ALTER ROLE {identifier(catalog_rules.SUPERUSER)}{place} SET {name} = {literal(value)}"


def forget(name: str, database: str) -> str:
    """Return the statement that takes a note about a database back."""
    return f"ALTER ROLE {identifier(catalog_rules.SUPERUSER)} IN DATABASE {identifier(database)} RESET {name}"


def note_for_all(name: str, value: str, databases: Iterable[str]) -> str:
    """Return the statement that writes one note about many databases, passing over those that are gone."""
    names = ", ".join(map(literal, databases))
    command = f"ALTER ROLE {identifier(catalog_rules.SUPERUSER)} IN DATABASE %I SET {name} = %L"
    return run_all(
        f"SELECT pg_catalog.format({literal(command)}, d.datname, {literal(value)}::pg_catalog.text) "
        f"FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) ANY (ARRAY[{names}]::pg_catalog.name[])"
    )


def parsed(settings: Iterable[str]) -> Mapping[str, str]:
    """Return our notes of what `pg_db_role_setting` holds in one row."""
    pairs = (setting.partition("=") for setting in settings)
    return {name: value for name, _, value in pairs if name.startswith(PREFIX)}
