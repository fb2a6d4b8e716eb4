"""Rules for the roles, databases and delta operations of a spec, kept before anything is done (contract 05 §16)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from trio_compute.model.catalog_options import (
    DATABASE_OPTIONS,
    MAX_NAME_BYTES,
    ROLE_OPTIONS,
    Kind,
    canonical,
    option_fault,
)
from trio_compute.model.problems import Path, Problem
from trio_compute.model.spec import ComputeSpec, Database, DeltaOp, GenericOption, Role

SUPERUSER = "cloud_admin"  # read where it is used, so that a test can replace it (K-36)
FORMER_SUPERUSER = "zenith_admin"
TEMPLATES = frozenset({"template0", "template1"})
SYSTEM_DATABASES = TEMPLATES | {"postgres"}
RENAMES = frozenset({"rename_db", "rename_role"})
ACTIONS = RENAMES | {"delete_db", "delete_role"}
# Quoted or not, Postgres takes these for PUBLIC and NONE; in capitals they are names like all others.
SPECIAL_ROLES = frozenset({"public", "none"})
_MEMBERS = frozenset({"ROLE", "ADMIN"})
# Postgres has this one for a purpose of its own and lets nobody be its member, nor it a member of anybody.
_OWNER_OF_DATABASE = "pg_database_owner"
_MAX_INT4 = 2**31 - 1
# Keys have 32 bytes. Postgres takes any other text for a password in the clear, and hashes it.
_BASE64 = "(?:[A-Za-z0-9+/]{4}){%s}(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
_KEY = "[A-Za-z0-9+/]{43}="
_MD5 = re.compile(r"\A[0-9a-fA-F]{32}\Z")
_SCRAM = re.compile(rf"\ASCRAM-SHA-256\$[1-9][0-9]{{0,8}}:{_BASE64 % '0,64'}\${_KEY}:{_KEY}\Z")
# What was clearly meant as a hash would become a password that nobody knows.
_MEANT_AS_HASH = re.compile(r"\A(?:SCRAM-SHA-256\$|md5[0-9a-fA-F]{32}\Z)")
_MAX_PASSWORD_BYTES = 4096
_DELTA: Path = ("delta_operations",)
_ROLES: Path = ("cluster", "roles")
_DATABASES: Path = ("cluster", "databases")
_JWKS: Path = ("local_proxy_config", "jwks")


def is_system_role(name: str) -> bool:
    """Tell whether a role belongs to Postgres or to the operator, so that no spec may change it (K-17)."""
    return name in {SUPERUSER, FORMER_SUPERUSER} or name.startswith("pg_")


def is_reserved_role(name: str) -> bool:
    """Tell whether Postgres keeps a role name for itself, so that nobody can make or name such a role (T-16)."""
    return name in SPECIAL_ROLES or name.startswith("pg_")


def is_md5(password: str) -> bool:
    """Tell whether a password of a spec is an md5 hash."""
    return _MD5.match(password) is not None


def is_plain(password: str) -> bool:
    """Tell whether a password of a spec is neither a verifier nor a hash, so that we must hash it (C-04)."""
    return bool(password) and not is_md5(password) and _SCRAM.match(password) is None


def catalog_problems(spec: ComputeSpec) -> Iterator[Problem]:
    """Yield what forbids applying the catalog part of a spec."""
    for number, role in enumerate(spec.cluster.roles):
        yield from _role_name_problems(role.name, "role name", (*_ROLES, number, "name"))
        yield from _password_problems(role, (*_ROLES, number, "encrypted_password"))
        yield from _option_problems(role.options, ROLE_OPTIONS, (*_ROLES, number, "options"))
        yield from _membership_problems(role, (*_ROLES, number, "options"))
    for number, database in enumerate(spec.cluster.databases):
        yield from _name_problems(database.name, "database name", (*_DATABASES, number, "name"))
        yield from _role_name_problems(database.owner, "database owner", (*_DATABASES, number, "owner"))
        yield from _option_problems(database.options, DATABASE_OPTIONS, (*_DATABASES, number, "options"))
    yield from _jwks_problems(spec)
    yield from _conflicts(spec.cluster.roles, "role", _ROLES)
    yield from _conflicts(spec.cluster.databases, "database", _DATABASES)
    for number, operation in enumerate(spec.delta_operations or ()):
        if operation.action in ACTIONS:
            yield from _delta_problems(spec, operation, (*_DELTA, number))


def catalog_warnings(spec: ComputeSpec) -> tuple[str, ...]:
    """Say what of the catalog part will be passed over."""
    roles, databases = spec.cluster.roles, spec.cluster.databases
    deleted = {operation.name for operation in spec.delta_operations or () if operation.action == "delete_db"}
    kept = (database.name for database in databases if database.name in deleted)
    unknown = (operation.action for operation in spec.delta_operations or () if operation.action not in ACTIONS)
    told = (
        *(f"role {name!r} is listed more than once; the first one counts" for name in _repeated(roles)),
        *(f"database {name!r} is listed more than once; the first one counts" for name in _repeated(databases)),
        *_role_warnings(roles),
        *(
            f"database {database.name!r} is a template of Postgres and stays as it is"
            for database in databases
            if database.name in TEMPLATES
        ),
        *(f"database {name!r} is to be deleted and listed as wanted; it stays" for name in kept),
        *(f"unknown delta operation {action[:40]!r} is ignored" for action in unknown),
    )
    return tuple(dict.fromkeys(told))


def _role_warnings(roles: Sequence[Role]) -> Iterator[str]:
    for role in roles:
        if role.name == SUPERUSER:
            if role.options:
                yield f"role {role.name!r} belongs to the system: its password is set, its options are passed over"
        elif is_system_role(role.name):
            yield f"role {role.name!r} belongs to the system and stays as it is"
    for role in roles:
        if is_plain(role.encrypted_password or ""):
            yield f"password of role {role.name[:80]!r} is plain text in the spec; a SCRAM verifier is made of it"


def is_possible_name(name: str) -> bool:
    """Tell whether Postgres can hold a name as it is, neither cut nor refused."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 1 <= size <= MAX_NAME_BYTES and "\0" not in name


def _name_problems(name: str, what: str, path: Path) -> Iterator[Problem]:
    if not is_possible_name(name):
        message = f"{what} {name[:80]!r} must have 1 to {MAX_NAME_BYTES} bytes and no NUL"
        yield Problem(path=path, message=message, hint="Postgres would cut or refuse it; choose another name")


def _role_name_problems(name: str, what: str, path: Path) -> Iterator[Problem]:
    yield from _name_problems(name, what, path)
    if is_reserved_role(name):
        yield _reserved(name, what, path)


def _reserved(name: str, what: str, path: Path) -> Problem:
    message = f"{what} {name[:80]!r} is reserved by Postgres"
    hint = "choose a name that is neither public nor none and does not begin with pg_"
    return Problem(path=path, message=message, hint=hint, is_told_whole=True)


def _jwks_problems(spec: ComputeSpec) -> Iterator[Problem]:
    jwks = spec.local_proxy_config.jwks if spec.local_proxy_config is not None else None
    for number, provider in enumerate(jwks or ()):
        for place, name in enumerate(provider.role_names or ()):
            yield from _role_name_problems(name, "role name", (*_JWKS, number, "role_names", place))


def _membership_problems(role: Role, path: Path) -> Iterator[Problem]:
    """Yield memberships that Postgres refuses; to be in a predefined role is what those are for."""
    for number, option in enumerate(role.options or ()):
        name, other = canonical(option.name), option.value or ""
        is_kept = is_reserved_role(other) if name in _MEMBERS else other in SPECIAL_ROLES | {_OWNER_OF_DATABASE}
        if name in _MEMBERS | {"IN ROLE"} and is_kept:
            yield _reserved(other, f"option {name}: role name", (*path, number, "value"))
        elif name in _MEMBERS | {"IN ROLE"} and other == role.name:
            message = f"option {name} makes role {other[:80]!r} a member of itself"
            yield Problem(path=(*path, number, "value"), message=message, hint="leave it out", is_told_whole=True)


def _password_problems(role: Role, path: Path) -> Iterator[Problem]:
    password = role.encrypted_password
    if not password or not is_plain(password):
        return
    if _MEANT_AS_HASH.match(password) is not None:
        yield Problem(
            path=path,
            message=f"password of role {role.name[:80]!r} is neither a SCRAM verifier nor an md5 hash",
            hint="give SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>, or the 32 hex digits of md5",
        )
    elif "\0" in password or len(password.encode(errors="replace")) > _MAX_PASSWORD_BYTES or not _is_utf8(password):
        message = f"plain password of role {role.name[:80]!r} must be text of at most {_MAX_PASSWORD_BYTES} bytes"
        yield Problem(path=path, message=message, hint="nobody could log in with it", is_told_whole=True)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _option_problems(
    options: Sequence[GenericOption] | None, allowed: dict[str, Kind], path: Path
) -> Iterator[Problem]:
    for number, option in enumerate(options or ()):
        fault = option_fault(option, allowed)
        if fault is not None:
            hint = f"known ones: {', '.join(allowed)}" if "known" in fault else "see CREATE ROLE and CREATE DATABASE"
            yield Problem(path=(*path, number), message=fault, hint=hint)
        elif canonical(option.name) == "CONNECTION LIMIT" and not -1 <= int(option.value or "0") <= _MAX_INT4:
            message = f"option CONNECTION LIMIT is not between -1 and {_MAX_INT4}"
            yield Problem(path=(*path, number), message=message, hint="-1 stands for no limit", is_told_whole=True)


def _conflicts(entries: Sequence[Role | Database], what: str, path: Path) -> Iterator[Problem]:
    first: dict[str, Role | Database] = {}
    for number, entry in enumerate(entries):
        if first.setdefault(entry.name, entry) != entry:
            message = f"{what} {entry.name[:80]!r} is listed twice with different content"
            yield Problem(path=(*path, number), message=message, hint="keep one of the two")


def _repeated(entries: Sequence[Role | Database]) -> list[str]:
    counts = Counter(entry.name for entry in entries)
    return [name for name, count in counts.items() if count > 1]


def _delta_problems(spec: ComputeSpec, operation: DeltaOp, path: Path) -> Iterator[Problem]:
    what = f"delta operation {operation.action}"
    yield from _name_problems(operation.name, f"{what}: name", (*path, "name"))
    if operation.action in RENAMES and operation.new_name is None:
        hint = "add the name that it shall have afterwards"
        yield Problem(path=(*path, "new_name"), message=f"{what} requires new_name", hint=hint)
    elif operation.action in RENAMES and operation.new_name is not None:
        yield from _name_problems(operation.new_name, f"{what}: new_name", (*path, "new_name"))
    is_of_role = operation.action.endswith("_role")
    protected = is_system_role if is_of_role else SYSTEM_DATABASES.__contains__
    for field in ("name", "new_name") if operation.action in RENAMES else ("name",):
        name = getattr(operation, field)
        if name is not None and protected(name):
            message = f"{what} may not touch {name!r}, which belongs to the system"
            yield Problem(path=(*path, field), message=message, hint="leave this operation out")
        elif name is not None and is_of_role and is_reserved_role(name):
            yield _reserved(name, f"{what}: {field}", (*path, field))
    if operation.action == "delete_role":
        yield from _deleted_role_problems(spec, operation.name, path)


def _deleted_role_problems(spec: ComputeSpec, name: str, path: Path) -> Iterator[Problem]:
    if any(role.name == name for role in spec.cluster.roles):
        message = f"role {name[:80]!r} is both wanted and to be deleted"
        yield Problem(
            path=path, message=message, hint="take it from cluster.roles or from delta_operations", also=(_ROLES,)
        )
    owned = next((database.name for database in spec.cluster.databases if database.owner == name), None)
    if owned is not None:
        message = f"role {name[:80]!r} is to be deleted and to own database {owned[:80]!r}"
        yield Problem(path=path, message=message, hint="give the database another owner", also=(_DATABASES,))
