"""What exists, as far as planning needs to know it (contract 05 §3)."""

from __future__ import annotations

from copy import copy

from msgspec import Struct, field


class RoleFacts(Struct, frozen=True):
    """Hold a role: its stored password, which of CREATEDB, CREATEROLE, REPLICATION, BYPASSRLS it has, its groups.

    Of a role that is to be deleted, `member_of` holds every role that it can act as.
    """

    password: str | None = None
    attributes: frozenset[str] = frozenset()
    member_of: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    oid: int = 0
    is_superuser: bool = False


class DatabaseFacts(Struct, frozen=True):
    """Hold a database.

    `granted`: the privileged role has every privilege on it; `readers`: how many read from its logical replication
    slots; `prepared`: the mark of what it was last prepared for; `subscriptions_pending`: the timeline for which its
    inherited subscriptions are still to be dropped; `heir`: the role that gets what deleted roles leave in it;
    `limit`: its connection limit; `reserved`: it is open for us alone, and this is what it was before.
    """

    owner: str
    connectable: bool = True
    invalid: bool = False
    template: bool = False
    granted: bool = True
    subscriptions: int = 0
    prepared: str | None = None
    readers: int = 0
    oid: int = 0
    limit: int = -1
    subscriptions_pending: str | None = None
    heir: str | None = None
    reserved: str | None = None


class ExtensionFacts(Struct, frozen=True):
    """Hold an extension of the system database; who owns one may add to it, so `is_ours` tells if a superuser does."""

    schema: str
    relocatable: bool = True
    up_to_date: bool = True
    is_ours: bool = True


class SchemaFacts(Struct, frozen=True):
    """Hold a schema of the system database that matters to us.

    `is_ours`: it belongs to a superuser, and `open_to`: who else may create in it.
    """

    owner: str
    is_ours: bool = True
    open_to: tuple[str, ...] = ()


OURS = SchemaFacts("cloud_admin")


class Snapshot(Struct, kw_only=True):
    """Hold all facts; planning changes its own copy as it goes, which ends as the prediction of the outcome.

    Of roles that go, by database: `footholds` tells where one owns something, is named in privileges or has prepared
    transactions, `estates` where it owns what others can inherit, `subscribers` where it owns subscriptions; shared
    objects count for the system database, which is the one of the connection URL. `former_tables` are tables in which
    we, or the original, once kept what are notes now, with their oid, or 0 if one cannot be used.
    """

    major: int
    system_database: str
    roles: dict[str, RoleFacts]
    databases: dict[str, DatabaseFacts]
    footholds: dict[str, frozenset[str]] = {}
    estates: dict[str, frozenset[str]] = {}
    subscribers: dict[str, frozenset[str]] = {}
    # Who can reach the files and programs of the server by its groups, without being a superuser: member, group.
    reaching_out: tuple[tuple[str, str], ...] = ()
    extensions: dict[str, ExtensionFacts] = {}
    available_extensions: frozenset[str] = frozenset()
    schemas: dict[str, SchemaFacts] = field(default_factory=lambda: {"public": OURS})
    libraries: tuple[str, ...] = ()
    former_tables: dict[str, int] = {}
    audit_silenced: bool = False
    # For which timeline inherited subscriptions were dropped, but in databases where that is pending.
    dropped_subscriptions_of: str | None = None
    has_notes: bool = True
    platform_roles: frozenset[str] = frozenset()
    # Lakebase only: what the monitor was granted (None: there is no such object), and the source of its function.
    monitor_grants: dict[str, bool | None] = {}
    write_check: str | None = None
    auth_made_anew: bool = False

    def copy(self) -> Snapshot:
        """Return a copy that can be changed without changing this one."""
        made = copy(self)
        for name in (
            "roles",
            "databases",
            "footholds",
            "estates",
            "subscribers",
            "extensions",
            "schemas",
            "former_tables",
            "monitor_grants",
        ):
            setattr(made, name, dict(getattr(self, name)))
        return made


def fresh_snapshot(superuser: str, *, major: int, libraries: tuple[str, ...] = ()) -> Snapshot:
    """Return what a new cluster holds, to plan without a server; each library is taken to bring its extension."""
    return Snapshot(
        major=major,
        system_database="postgres",
        roles={superuser: RoleFacts(is_superuser=True)},
        databases={
            "postgres": DatabaseFacts(superuser),
            "template1": DatabaseFacts(superuser, template=True),
            "template0": DatabaseFacts(superuser, template=True, connectable=False),
        },
        available_extensions=frozenset({"neon", *libraries}),
        libraries=libraries,
    )
