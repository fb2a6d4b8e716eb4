"""What happens inside each database (contract 05 §8)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from msgspec import structs

from trio_compute.model import catalog_rules
from trio_compute.plan.catalog import notes
from trio_compute.plan.catalog.blocks import block, each_of
from trio_compute.plan.catalog.operations import Operation, Phase, Subject
from trio_compute.plan.catalog.quoting import identifier, literal
from trio_compute.plan.catalog.snapshot import DatabaseFacts, Snapshot
from trio_compute.plan.catalog.wanted import Wanted

# Counts up when the work below changes, so that databases that were prepared by an older version are prepared again.
PREPARATION = 2
GONE = frozenset({"3D000", "42704"})
WEB_ACCESS = "web_access"
_PUBLIC_EXISTS = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'public'"
_SUBSCRIPTIONS = """\
SELECT pg_catalog.format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); '
                         'DROP SUBSCRIPTION %1$I', s.subname)
FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.subdbid
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()"""


# Everybody may read this catalog, and who does so in a transaction that stays open would keep us out for ever (T-14).
_LOCK = """\
    BEGIN
        PERFORM pg_catalog.set_config('lock_timeout', '3s', true);
        LOCK TABLE pg_catalog.pg_subscription IN ACCESS EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        PERFORM pg_catalog.pg_terminate_backend(l.pid, 2000) FROM pg_catalog.pg_locks l
        JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
        JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) a.usesysid
        WHERE l.relation OPERATOR(pg_catalog.=) 'pg_catalog.pg_subscription'::pg_catalog.regclass
          AND l.granted AND NOT r.rolsuper;
        LOCK TABLE pg_catalog.pg_subscription IN ACCESS EXCLUSIVE MODE;
    END;"""


def is_open(facts: DatabaseFacts | None) -> bool:
    """Tell whether one can connect to a database."""
    return facts is not None and facts.connectable and not facts.invalid


def drop_subscriptions(name: str, state: Snapshot, why: str) -> Phase | None:
    """Plan the end of a database's logical subscriptions; their slots at the publisher are left alone."""
    facts = state.databases.get(name)
    is_pending = facts is not None and facts.subscriptions_pending is not None
    if facts is None or not is_open(facts) or not (facts.subscriptions or is_pending):
        return None
    state.databases[name] = structs.replace(facts, subscriptions=0, subscriptions_pending=None)
    # In one transaction: what is noted as done is done.
    done = f"\n    {notes.forget(notes.SUBSCRIPTIONS_PENDING, name)};" if is_pending else ""
    body = f"{_LOCK}\n    {each_of(_SUBSCRIPTIONS)}{done}"
    operation = Operation(
        what=f"drop {facts.subscriptions} subscription(s) of database {name}",
        why=why,
        statement=block(body, "command pg_catalog.text"),
        subject=Subject("database", name),
        tolerated=GONE,
    )
    return Phase("DropLogicalSubscriptions", (operation,))


def note_inherited_subscriptions(wanted: Wanted, state: Snapshot) -> Iterator[Operation]:
    """Plan the note of where subscriptions that a branch inherited are still to be dropped (K-22, K-23, T-11).

    It comes first, so that databases which are closed or fail stay noted, and those made later are left alone.
    """
    if not wanted.drop_subscriptions or state.dropped_subscriptions_of == wanted.timeline_id:
        return
    state.dropped_subscriptions_of = wanted.timeline_id
    pending = [name for name, facts in state.databases.items() if facts.subscriptions]
    for name in pending:
        state.databases[name] = structs.replace(state.databases[name], subscriptions_pending=wanted.timeline_id)
    subject = Subject("object", "notes of the compute")
    if pending:
        yield Operation(
            what=f"note that {len(pending)} database(s) have inherited subscriptions",
            why="this timeline needs them dropped",
            statement=notes.note_for_all(notes.SUBSCRIPTIONS_PENDING, wanted.timeline_id, pending),
            subject=subject,
        )
    yield Operation(
        what="note which databases have inherited subscriptions",
        why="once for each timeline is enough",
        statement=notes.note(notes.SUBSCRIPTIONS_DROPPED, wanted.timeline_id),
        subject=subject,
    )


def preparation(name: str, wanted: Wanted, state: Snapshot) -> str:
    """Return a mark of what a database is prepared for; an equal mark means that there is nothing to do (K-32)."""
    parts = (PREPARATION, state.major, wanted.owner_of(name), wanted.privileged_role, _lets_create(wanted, state))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _lets_create(wanted: Wanted, state: Snapshot) -> bool:
    """Tell whether there is and will be a role web_access; a name alone is not enough (T-05)."""
    is_ours = WEB_ACCESS in state.platform_roles or any(role.name == WEB_ACCESS for role in wanted.roles)
    return state.major >= 15 and is_ours and WEB_ACCESS in state.roles


def change_schema_permissions(name: str, wanted: Wanted, state: Snapshot) -> Phase | None:
    """Plan the owner and the default privileges of schema public."""
    facts, owner, mark = state.databases[name], wanted.owner_of(name), preparation(name, wanted, state)
    if owner is None or facts.prepared == mark:
        return None
    state.databases[name] = structs.replace(facts, prepared=mark)
    former = ", ".join(map(literal, (catalog_rules.SUPERUSER, catalog_rules.FORMER_SUPERUSER)))
    operations = [
        Operation(
            what=f"give schema public of database {name} to {owner}",
            why="the owner of a database may create in it",
            statement=f"ALTER SCHEMA public OWNER TO {identifier(owner)}",
            subject=Subject("database", name),
            only_if=f"{_PUBLIC_EXISTS} AND pg_catalog.pg_get_userbyid(nspowner) "
            f"OPERATOR(pg_catalog.=) ANY (ARRAY[{former}]::pg_catalog.name[])",
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
    operations.append(
        Operation(
            what=f"note that database {name} is prepared",
            why="the next start then need not connect to it",
            statement=notes.note(notes.PREPARED, mark, name),
            subject=Subject("database", name),
        )
    )
    return Phase("ChangeSchemaPerms", tuple(operations))


def _on_public(name: str, statement: str, what: str) -> Operation:
    return Operation(
        what=f"{what} in schema public of database {name}",
        why="this database has not been prepared, or for another owner",
        statement=statement,
        subject=Subject("database", name),
        only_if=_PUBLIC_EXISTS,
    )
