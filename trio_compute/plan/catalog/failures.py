"""What went wrong while a plan was carried out, object by object."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from trio_compute.errors import PostgresError

SHOWN_FAILURES = 5
# What fails here concerns the whole cluster, so that a start fails with it; all else stays with one database (T-08).
_CLUSTER_PHASES = frozenset(
    {"CreatePrivilegedRole", "CreateDatabricksRoles", "AlterDatabricksRoles", "RenameRoles", "CreateAndAlterRoles"}
)


class Failure(Struct, frozen=True, kw_only=True):
    """Name what failed: where, which object, what was being done, and Postgres' own words.

    The text is for logs, which get no SQL (contract 05 §2.3); the statement is for who asked.
    """

    phase: str
    database: str
    object: str
    operation: str
    sqlstate: str | None
    message: str
    detail: str | None = None
    statement: str | None = None  # without secrets; null if none was sent

    @property
    def concerns_cluster(self) -> bool:
        """Tell whether more than one database suffers from it."""
        return self.phase in _CLUSTER_PHASES

    def __str__(self) -> str:
        state = f" (SQLSTATE {self.sqlstate})" if self.sqlstate else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"could not {self.operation} [{self.phase}, database {self.database}]: {self.message}{state}{detail}"


class CatalogFailed(PostgresError):
    """Report that the catalog is not as wanted; `failures` names every object at fault."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        shown = "; ".join(str(failure) for failure in self.failures[:SHOWN_FAILURES])
        more = len(self.failures) - SHOWN_FAILURES
        self.concerns_cluster = any(failure.concerns_cluster for failure in failures)
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)
