"""Phases of the deletion of roles: shut out, inherited from, dropped (contract 05 §8, §10; 11 T-03, T-10, T-12, T-17).

Whatever is cut, the same plan made again goes on from there; only `DROP ROLE`, which Postgres refuses while anything
still refers to the role, ends it. Nothing changes hands upwards: what a role leaves goes to the owner of the database
if the role could act as that one anyway, else to an heir, a role of ours that can neither log in nor do anything, and
of which nobody is a member: code that the role left in tables, views and indexes can then do nothing for anybody.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from trio_compute.plan.catalog import leftovers, notes
from trio_compute.plan.catalog.blocks import block, run_all
from trio_compute.plan.catalog.foreign_grants import foreign_grants
from trio_compute.plan.catalog.operations import Operation, Phase, Subject
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, RoleFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

WHY = "delta operation delete_role"
GONE = frozenset({"42704"})
PATIENCE_MS = 5000
# What the role granted stays, as granted by us (only since 16 it counts who granted a membership).
_REGRANTED = """\
SELECT 1 AS step, pg_catalog.format('GRANT %I TO %I WITH ADMIN %s, INHERIT %s, SET %s', g.rolname, m.rolname,
                                    a.admin_option::pg_catalog.text, a.inherit_option::pg_catalog.text,
                                    a.set_option::pg_catalog.text) AS command
FROM pg_catalog.pg_auth_members a
JOIN pg_catalog.pg_authid g ON g.oid OPERATOR(pg_catalog.=) a.roleid
JOIN pg_catalog.pg_authid m ON m.oid OPERATOR(pg_catalog.=) a.member
WHERE a.grantor OPERATOR(pg_catalog.=) {role}
  AND a.member OPERATOR(pg_catalog.<>) {role} AND a.roleid OPERATOR(pg_catalog.<>) {role}
UNION ALL
"""
_REVOKED = """\
SELECT CASE WHEN a.grantor OPERATOR(pg_catalog.=) {role} THEN 2 ELSE 3 END AS step,
       pg_catalog.format('REVOKE %I FROM %I{granted_by} CASCADE', g.rolname, m.rolname, r.rolname) AS command
FROM pg_catalog.pg_auth_members a
JOIN pg_catalog.pg_authid g ON g.oid OPERATOR(pg_catalog.=) a.roleid
JOIN pg_catalog.pg_authid m ON m.oid OPERATOR(pg_catalog.=) a.member
LEFT JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) a.grantor
WHERE {role} OPERATOR(pg_catalog.=) ANY (ARRAY[a.member, a.roleid{grantor}])"""
# Whoever has become the role by SET ROLE stays it, and nothing shows that from outside. So all who could have are
# noted, for as long as our session lasts, before nobody can any more.
_ACTORS = f"{notes.PREFIX}actors"
_NOTE_ACTORS = f"""\
PERFORM pg_catalog.set_config('{_ACTORS}', coalesce((
        SELECT pg_catalog.string_agg(a.pid::pg_catalog.text, ',') FROM pg_catalog.pg_stat_activity a
        JOIN pg_catalog.pg_authid m ON m.oid OPERATOR(pg_catalog.=) a.usesysid
        WHERE NOT m.rolsuper AND pg_catalog.pg_has_role(m.oid, {{role}}::pg_catalog.oid, 'MEMBER')), ''), false);
    """
_SESSIONS = f"""\
pg_catalog.pg_stat_activity a
    WHERE a.usesysid OPERATOR(pg_catalog.=) {{role}} OR a.pid::pg_catalog.text OPERATOR(pg_catalog.=) ANY (
        pg_catalog.string_to_array(pg_catalog.current_setting('{_ACTORS}', true), ','))"""
_END_SESSIONS = f"""\
    PERFORM pg_catalog.pg_terminate_backend(a.pid) FROM {_SESSIONS};
    PERFORM pg_catalog.pg_stat_clear_snapshot();
    PERFORM pg_catalog.pg_terminate_backend(a.pid, {{patience}}) FROM {_SESSIONS};
    PERFORM pg_catalog.pg_stat_clear_snapshot();
    SELECT pg_catalog.string_agg(a.pid::pg_catalog.text, ', ') INTO remaining FROM {_SESSIONS};
    PERFORM pg_catalog.set_config('{_ACTORS}', '', false);
    IF remaining IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = 'sessions of the role do not end',
                              DETAIL = pg_catalog.format('pid %s', remaining);
    END IF;"""


def leavers(wanted: Wanted, state: Snapshot) -> list[str]:
    """Return the roles to be deleted that are there."""
    return [name for name in wanted.subjects("delete_role") if name in state.roles]


def shut_out(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan that a role cannot log in, that nobody can act as it, and that its sessions are over."""
    for name in leavers(wanted, state):
        role, subject = state.roles[name].oid, Subject("role", name)
        steps = {
            f"shut role {name} out": f"ALTER ROLE {identifier(name)} NOLOGIN",
            f"take role {name} out of its groups": run_all(
                _group_changes(role, state.major), before=_NOTE_ACTORS.format(role=role)
            ),
            f"end the sessions of role {name}": _end_sessions(role),
        }
        for what, statement in steps.items():
            yield Operation(what=what, why=WHY, statement=statement, subject=subject)


def _group_changes(role: int, major: int) -> str:
    """Return the query for the statements that leave a role in no group and nobody in it."""
    if major < 16:
        found = _REVOKED.format(role=role, granted_by="", grantor="")
    else:
        found = (_REGRANTED + _REVOKED).format(role=role, granted_by=" GRANTED BY %I", grantor=", a.grantor")
    return f"SELECT command FROM ({found}) AS steps ORDER BY step"


def _end_sessions(role: int) -> str:
    return block(_END_SESSIONS.format(role=role, patience=PATIENCE_MS), "remaining pg_catalog.text")


def make_heirs(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan an heir for each database where a role leaves what its owner must not have."""
    leaving = leavers(wanted, state)
    for name, facts in list(state.databases.items()):
        if facts.heir is None and any(_leaves_to_heir(role, name, facts, state) for role in leaving):
            heir = _free_name(facts.oid, state)
            state.databases[name] = structs.replace(facts, heir=heir)
            yield _new_heir(name, heir, state)


def _leaves_to_heir(role: str, database: str, facts: DatabaseFacts, state: Snapshot) -> bool:
    if facts.owner == role:
        return True
    return database in state.estates.get(role, ()) and facts.owner not in state.roles[role].member_of


def _free_name(database: int, state: Snapshot) -> str:
    name = f"heir_of_deleted_roles_{database}"
    while name in state.roles:  # made by somebody else, or the note that it is ours is gone
        name += "_"
    return name


def _new_heir(database: str, heir: str, state: Snapshot) -> Operation:
    state.roles[heir] = RoleFacts()
    note = notes.note(notes.HEIR, "0", database).removesuffix("'0'")
    body = f"""\
    CREATE ROLE {identifier(heir)} NOLOGIN;
    EXECUTE pg_catalog.format({literal(note.replace("%", "%%") + "%L")},
        (SELECT r.oid FROM pg_catalog.pg_authid r WHERE r.rolname OPERATOR(pg_catalog.=) {literal(heir)}));"""
    return Operation(
        what=f"create role {heir}",
        why=f"what deleted roles leave in database {database} may not go to {state.databases[database].owner}",
        statement=block(body),
        subject=Subject("role", heir),
    )


def give_databases_away(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the heir as owner of databases that no spec lists and whose owner goes (K-21, T-03)."""
    leaving = frozenset(leavers(wanted, state))
    for name, facts in list(state.databases.items()):
        if facts.owner in leaving and facts.heir is not None:
            state.databases[name] = structs.replace(facts, owner=facts.heir)
            yield Operation(
                what=f"give database {name} to {facts.heir}",
                why=f"its owner {facts.owner} is to be deleted",
                statement=f"ALTER DATABASE {identifier(name)} OWNER TO {identifier(facts.heir)}",
                subject=Subject("database", name),
            )


def places(wanted: Wanted, state: Snapshot) -> list[str]:
    """Return the databases in which something has to be done before these roles can be dropped."""
    held = (state.footholds, state.subscribers)
    return sorted({place for role in leavers(wanted, state) for places in held for place in places.get(role, ())})


def drop_subscriptions(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the end of a role's subscriptions before 16, where superusers alone may own one; their slots stay."""
    owners = [role for role in leavers(wanted, state) if name in state.subscribers.get(role, ())]
    if state.major >= 16 or not owners:
        return None
    operations = []
    for role in owners:
        state.subscribers[role] -= {name}
        operations.append(
            Operation(
                what=f"drop the subscriptions of role {role} in database {name}",
                why=f"{WHY}; before 16 a superuser alone could have them",
                statement=leftovers.drop_subscriptions(state.roles[role].oid),
                subject=Subject("role", role),
            )
        )
    return Phase("DropSubscriptionsOfDeletedRoles", tuple(operations))


def role_references(name: str, wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan that nothing in a database belongs to a role that goes, nor is granted to it (K-19, K-20)."""
    for role in leavers(wanted, state):
        if name in state.footholds.get(role, ()):
            state.footholds[role] -= {name}
            yield from _reference_operations(role, name, state)


def delete_role_references(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the phase of the same name."""
    operations = tuple(role_references(name, wanted, state))
    return Phase("DeleteDBRoleReferences", operations) if operations else None


def _reference_operations(role: str, database: str, state: Snapshot) -> Iterator[Operation]:
    oid, subject = state.roles[role].oid, Subject("role", role)
    yield Operation(
        what=f"end the prepared transactions of role {role}",
        why=WHY,
        statement=leftovers.prepared_transactions(oid),
        subject=subject,
        each=True,
        tolerated=GONE,
    )
    if database in state.estates.get(role, ()):
        state.estates[role] -= {database}
        yield from _inheritance(role, database, state)
    rest = {
        f"revoke privileges that role {role} was given": run_all(foreign_grants(oid, state, database)),
        f"drop what else mentions role {role}": leftovers.drop_mentions(oid),
    }
    for what, statement in rest.items():
        yield Operation(what=what, why=WHY, statement=statement, subject=subject)


def _inheritance(role: str, database: str, state: Snapshot) -> Iterator[Operation]:
    oid, facts, subject = state.roles[role].oid, state.databases[database], Subject("role", role)
    to_owner = facts.owner in state.roles[role].member_of
    heir = leftovers.owner_of_database() if to_owner else f"{literal(str(facts.heir))}::pg_catalog.name"
    name = facts.owner if to_owner else facts.heir
    yield Operation(
        what=f"take SECURITY DEFINER from the routines of role {role}",
        why=f"{WHY}; others may be making objects in its name by them",
        statement=leftovers.make_harmless(oid),
        subject=subject,
    )
    yield Operation(
        what=f"give most relations of role {role} to {name}",
        why=f"{WHY}; in parts that the table of locks can hold",
        statement=leftovers.move_relations(oid, heir),
        subject=subject,
        only_if=leftovers.many_relations(oid),
        repeated=True,
    )
    yield Operation(
        what=f"give what role {role} owns to {name}",
        why=WHY,
        statement=leftovers.move_all(oid, heir, is_powerless=not to_owner),
        subject=subject,
    )


def drop_roles(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the deletion of roles that nothing refers to any more, and the end of sessions that slipped in."""
    for name in leavers(wanted, state):
        oid, subject = state.roles.pop(name).oid, Subject("role", name)
        state.footholds.pop(name, None)
        statement = f"DROP ROLE IF EXISTS {identifier(name)}"
        yield Operation(what=f"drop role {name}", why=WHY, statement=statement, subject=subject)
        what = f"end sessions that role {name} had begun"
        yield Operation(what=what, why=WHY, statement=_end_sessions(oid), subject=subject)
