"""Phases about roles, before and after the work in databases (contract 05 §7, §10)."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from trio_compute.model import catalog_rules
from trio_compute.model.spec import Role
from trio_compute.plan.catalog.operations import Operation, Subject
from trio_compute.plan.catalog.options import (
    alteration_words,
    creation_words,
    groups_of,
    password_literal,
    stored_password,
)
from trio_compute.plan.catalog.passwords import with_verifier
from trio_compute.plan.catalog.quoting import identifier
from trio_compute.plan.catalog.snapshot import RoleFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

PRIVILEGED_ATTRIBUTES = ("CREATEDB", "CREATEROLE", "REPLICATION", "BYPASSRLS")
PRIVILEGED_GROUPS = ("pg_read_all_data", "pg_write_all_data")
MEMBER_ATTRIBUTES = ("INHERIT", "CREATEROLE", "CREATEDB", "BYPASSRLS", "REPLICATION")


def create_privileged_role(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the role that all ordinary roles are members of; one that a crash left incomplete is mended (K-29)."""
    name = wanted.privileged_role
    attributes = [word for word in PRIVILEGED_ATTRIBUTES if not (wanted.lakebase and word == "REPLICATION")]
    facts, subject = state.roles.get(name), Subject("role", name)
    state.roles[name] = RoleFacts(None, frozenset(attributes), frozenset(PRIVILEGED_GROUPS))
    if facts is None:
        words = " ".join([*attributes, "NOLOGIN", "IN ROLE", ", ".join(PRIVILEGED_GROUPS)])
        statement = f"CREATE ROLE {identifier(name)} {words}"
        yield Operation(
            what=f"create privileged role {name}", why="it does not exist", statement=statement, subject=subject
        )
        return
    state.roles[name] = structs.replace(
        facts, attributes=facts.attributes.union(attributes), member_of=facts.member_of.union(PRIVILEGED_GROUPS)
    )
    missing = [word for word in attributes if word not in facts.attributes]
    if missing:
        yield Operation(
            what=f"give privileged role {name} its attributes",
            why=f"it lacks {', '.join(missing)}",
            statement=f"ALTER ROLE {identifier(name)} {' '.join(missing)}",
            subject=subject,
        )
    for group in PRIVILEGED_GROUPS:
        if group not in facts.member_of:
            yield Operation(
                what=f"make privileged role {name} a member of {group}",
                why="it is not",
                statement=f"GRANT {group} TO {identifier(name)}",
                subject=subject,
            )


def rename_roles(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan renames of roles; one that was done already is nothing to do (K-01)."""
    for operation in wanted.delta:
        old, new = operation.name, operation.new_name
        if operation.action != "rename_role" or new is None:
            continue
        if old in state.roles and new not in state.roles:
            facts = state.roles.pop(old)
            # Postgres clears an md5 password on this occasion, since the name is its salt.
            kept = None if (facts.password or "").startswith("md5") else facts.password
            state.roles[new] = structs.replace(facts, password=kept)
            for places in (state.footholds, state.estates, state.subscribers):
                if old in places:
                    places[new] = places.pop(old)
            state.databases = {
                name: structs.replace(database, owner=new) if database.owner == old else database
                for name, database in state.databases.items()
            }
            yield Operation(
                what=f"rename role {old} to {new}",
                why="delta operation rename_role",
                statement=f"ALTER ROLE {identifier(old)} RENAME TO {identifier(new)}",
                subject=Subject("role", old),
            )
        elif old in state.roles or new not in state.roles:
            both = "both exist" if old in state.roles else "neither exists"
            warnings.append(f"role {old!r} is not renamed to {new!r}: {both}")


def create_and_alter_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan new roles, and new passwords of known ones; options alone alter nothing (K-16)."""
    for listed in wanted.roles:
        facts = state.roles.get(listed.name)
        role = with_verifier(listed, None if facts is None else facts.password)
        password = stored_password(role)
        if facts is not None and facts.password == password:
            continue
        if role.name == catalog_rules.SUPERUSER:
            if facts is not None:
                state.roles[role.name] = structs.replace(facts, password=password)
                yield _superuser_password(role)
            continue
        # The password of an unchanged name is all that an alter may touch beside what the spec's options say.
        state.roles[role.name] = structs.replace(facts or RoleFacts(), password=password)
        yield _alteration(role) if facts is not None else _creation(role, wanted)


def _superuser_password(role: Role) -> Operation:
    """Change nothing but the password: what the superuser is, no spec may say (K-17 as C-03 amends it)."""
    return Operation(
        what=f"set the password of {role.name}",
        why="its password differs",
        statement=f"ALTER ROLE {identifier(role.name)} PASSWORD {password_literal(role)}",
        subject=Subject("role", role.name),
        secret=password_literal(role) if role.encrypted_password else None,
    )


def _alteration(role: Role) -> Operation:
    return Operation(
        what=f"alter role {role.name}",
        why="its password differs",
        statement=f"ALTER ROLE {identifier(role.name)} {alteration_words(role)}",
        subject=Subject("role", role.name),
        secret=password_literal(role) if role.encrypted_password else None,
    )


def _creation(role: Role, wanted: Wanted) -> Operation:
    is_member = role.name not in wanted.jwks_roles
    words = creation_words(role, MEMBER_ATTRIBUTES, [wanted.privileged_role]) if is_member else creation_words(role)
    return Operation(
        what=f"create role {role.name}",
        why="it does not exist",
        statement=f"CREATE ROLE {identifier(role.name)} {words}",
        subject=Subject("role", role.name),
        secret=password_literal(role) if role.encrypted_password else None,
    )


def revoke_server_access(wanted: Wanted, state: Snapshot, warnings: list[str]) -> Iterator[Operation]:
    """Plan that nobody reaches the server's files and programs whom the spec does not let.

    Before 16 CREATEROLE, which every member has, may grant the groups that can; between two applies it still may.
    """
    listed = {role.name: groups_of(role) for role in wanted.roles}
    kept = []
    for member, group in state.reaching_out:
        if group in listed.get(member, ()) or member.startswith("pg_"):
            kept.append((member, group))
            continue
        warnings.append(f"role {member!r} had become a member of {group}, which no spec says")
        yield Operation(
            what=f"take role {member} out of {group}",
            why="it is a way to the server's files and programs",
            statement=f"REVOKE {group} FROM {identifier(member)} CASCADE",
            subject=Subject("role", member),
        )
    state.reaching_out = tuple(kept)
