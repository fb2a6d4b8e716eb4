"""The options of roles and databases as words of SQL (contract 05 §5, K-04)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trio_compute.model.catalog_options import DATABASE_OPTIONS, ROLE_OPTIONS, Kind, canonical
from trio_compute.model.spec import Database, GenericOption, Role
from trio_compute.plan.catalog.quoting import identifier, literal

_LOGIN = frozenset({"LOGIN", "NOLOGIN"})
# As the contract shows them. All else is quoted: some plain words, such as `user` or `default`, mean something else.
_TEMPLATES = frozenset({"template0", "template1"})


def stored_password(role: Role) -> str | None:
    """Return the password as Postgres stores it: SCRAM verifiers as they are, md5 hashes with their prefix (K-16).

    An empty one is none (C-04); a plain one must have become a verifier.
    """
    text = role.encrypted_password or None
    return text if text is None or text.startswith("SCRAM-SHA-256") else f"md5{text.lower()}"


def password_literal(role: Role) -> str:
    """Return what follows PASSWORD."""
    stored = stored_password(role)
    return "NULL" if stored is None else literal(stored)


def creation_words(role: Role, attributes: Sequence[str] = (), groups: Sequence[str] = ()) -> str:
    """Return what follows the name in CREATE ROLE; the role's own options win over the attributes."""
    own = _rendered(role.options, ROLE_OPTIONS, left_out=_LOGIN)
    added = [word for word in attributes if word not in own]
    in_role = [*map(identifier, groups), *([own.pop("IN ROLE").removeprefix("IN ROLE ")] if "IN ROLE" in own else [])]
    membership = [f"IN ROLE {', '.join(in_role)}"] if in_role else []
    return " ".join([*added, *membership, *own.values(), "LOGIN PASSWORD", password_literal(role)])


def alteration_words(role: Role) -> str:
    """Return what follows the name in ALTER ROLE, which knows no memberships."""
    own = _rendered(role.options, ROLE_OPTIONS, left_out=_LOGIN | {"IN ROLE", "ROLE", "ADMIN"})
    return " ".join([*own.values(), "LOGIN PASSWORD", password_literal(role)])


def database_words(database: Database) -> str:
    """Return what follows the name in CREATE DATABASE."""
    own = _rendered(database.options, DATABASE_OPTIONS, left_out=frozenset({"OWNER"}))
    return " ".join([*own.values(), "OWNER", identifier(database.owner)])


def groups_of(role: Role) -> list[str]:
    """Return the groups that the options of a role name."""
    named = (option.value or "" for option in role.options or () if canonical(option.name) == "IN ROLE")
    return [name.strip() for names in named for name in names.split(",")]


def template_of(database: Database) -> str:
    """Return the name of the database that a new one is copied from."""
    named = (option.value for option in database.options or () if canonical(option.name) == "TEMPLATE")
    return next(named, None) or "template1"


def _rendered(
    options: Iterable[GenericOption] | None, allowed: dict[str, Kind], *, left_out: frozenset[str]
) -> dict[str, str]:
    """Return each option once, by its name in capitals; the first of a repetition counts."""
    words: dict[str, str] = {}
    for option in options or ():
        name = canonical(option.name)
        if name not in left_out:
            # A flag and its negation would collide in Postgres as much as a repetition.
            key = name.removeprefix("NO") if allowed[name] is Kind.NOTHING else name
            words.setdefault(key, f"{name} {_value(option, allowed[name])}".strip())
    return words


def _value(option: GenericOption, kind: Kind) -> str:
    value = option.value or ""
    if kind is Kind.TEXT:
        return literal(value)
    if kind is Kind.NAME:
        return value if option.vartype != "string" and value in _TEMPLATES else identifier(value)
    return value
