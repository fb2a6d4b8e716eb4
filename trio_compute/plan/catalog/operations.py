"""The steps of a plan: operations, in phases, per database where they must run there."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

REDACTED = "[redacted]"


class Subject(Struct, frozen=True):
    """Name what an operation is about: a `role`, a `database`, an `extension` or another `object`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Operation(Struct, frozen=True, kw_only=True):
    """Hold one change; `what` and `why` may be logged, the statement may hold a password.

    `only_if` is a query without whose row the statement is passed over; with `repeated` the statement is run for as
    long as the query has one. With `each`, the statement is a query whose rows are the statements to run, one by one
    outside of a transaction. `occupied` names a database that must be empty for this; whoever sits in it has to leave
    after a while, or `at_once`. Errors with one of the `tolerated` SQLSTATEs are warnings; those with one of the
    `retried` are tried again for a while.
    """

    what: str
    why: str
    statement: str
    subject: Subject
    secret: str | None = None
    only_if: str | None = None
    repeated: bool = False
    each: bool = False
    occupied: str | None = None
    at_once: bool = False
    tolerated: frozenset[str] = frozenset()
    retried: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """Return the statement without its secret."""
        return self.statement if self.secret is None else self.statement.replace(self.secret, f"'{REDACTED}'")


class Phase(Struct, frozen=True):
    """Hold operations that run one after another."""

    name: str
    operations: tuple[Operation, ...]


class DatabaseWork(Struct, frozen=True):
    """Hold the phases that run inside one database, over a connection of its own."""

    database: str
    phases: tuple[Phase, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """Hold everything to be done, in this order; empty parts are left out."""

    first: tuple[Phase, ...] = ()
    clean_up: tuple[DatabaseWork, ...] = ()
    before: tuple[Phase, ...] = ()
    databases: tuple[DatabaseWork, ...] = ()
    after: tuple[Phase, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.first or self.clean_up or self.before or self.databases or self.after)

    def located(self) -> Iterator[tuple[str | None, Phase]]:
        """Yield every phase with its database; None is the one of the connection URL."""
        yield from ((None, phase) for phase in self.first)
        for work in self.clean_up:
            yield from ((work.database, phase) for phase in work.phases)
        yield from ((None, phase) for phase in self.before)
        for work in self.databases:
            yield from ((work.database, phase) for phase in work.phases)
        yield from ((None, phase) for phase in self.after)
