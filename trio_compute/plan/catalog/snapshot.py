"""What exists, as far as planning needs to know it (contract 05 §3)."""

from __future__ import annotations

from msgspec import Struct


class RoleFacts(Struct, frozen=True):
    """Hold a role: its stored password, which of CREATEDB, CREATEROLE, REPLICATION, BYPASSRLS it has, its groups."""

    password: str | None = None
    attributes: frozenset[str] = frozenset()
    member_of: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()


class DatabaseFacts(Struct, frozen=True):
    """Hold a database.

    `granted`: the privileged role has every privilege on it; `readers`: how many read from its logical replication
    slots; `prepared`: the mark of what it was last prepared for; `noted`: that mark is written down (it moves with a
    database that is renamed, as the note goes by oid).
    """

    owner: str
    connectable: bool = True
    invalid: bool = False
    template: bool = False
    granted: bool = True
    subscriptions: int = 0
    prepared: str | None = None
    readers: int = 0
    noted: bool = True


class ExtensionFacts(Struct, frozen=True):
    """Hold an extension of the system database."""

    schema: str
    relocatable: bool = True
    up_to_date: bool = True


class Snapshot(Struct, kw_only=True):
    """Hold all facts; planning changes its own copy as it goes, which ends as the prediction of the outcome.

    `footholds` tells where a role owns something or is named in privileges, by database; shared objects count for the
    system database, which is the one of the connection URL.
    """

    major: int
    system_database: str
    roles: dict[str, RoleFacts]
    databases: dict[str, DatabaseFacts]
    footholds: dict[str, frozenset[str]] = {}
    extensions: dict[str, ExtensionFacts] = {}
    available_extensions: frozenset[str] = frozenset()
    schemas: frozenset[str] = frozenset({"public"})
    libraries: tuple[str, ...] = ()
    has_health_check: bool = False
    audit_silenced: bool = False
    dropped_subscriptions_of: str | None = None
    # Lakebase only: what the monitor was granted (None: there is no such object), and the source of its function.
    monitor_grants: dict[str, bool | None] = {}
    write_check: str | None = None
    auth_made_anew: bool = False

    def copy(self) -> Snapshot:
        """Return a copy that can be changed without changing this one."""
        return Snapshot(
            major=self.major,
            system_database=self.system_database,
            roles=dict(self.roles),
            databases=dict(self.databases),
            footholds=dict(self.footholds),
            extensions=dict(self.extensions),
            available_extensions=self.available_extensions,
            schemas=self.schemas,
            libraries=self.libraries,
            has_health_check=self.has_health_check,
            audit_silenced=self.audit_silenced,
            dropped_subscriptions_of=self.dropped_subscriptions_of,
            monitor_grants=dict(self.monitor_grants),
            write_check=self.write_check,
            auth_made_anew=self.auth_made_anew,
        )


def fresh_snapshot(superuser: str, *, major: int, libraries: tuple[str, ...] = ()) -> Snapshot:
    """Return what a new cluster holds, to plan without a server; each library is taken to bring its extension."""
    return Snapshot(
        major=major,
        system_database="postgres",
        roles={superuser: RoleFacts()},
        databases={
            "postgres": DatabaseFacts(superuser),
            "template1": DatabaseFacts(superuser, template=True),
            "template0": DatabaseFacts(superuser, template=True, connectable=False),
        },
        available_extensions=frozenset({"neon", *libraries}),
        libraries=libraries,
    )
