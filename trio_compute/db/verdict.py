"""Whose failure an SQLSTATE tells of: ours is an error of the compute, all else a state of the catalog (T-18)."""

from __future__ import annotations

from trio_compute.errors import Conflicting, PostgresError, SqlFailed

# Connections, resources, shutdown and interruptions, files and the system, configuration, internal errors.
OURS = frozenset({"08", "28", "53", "57", "58", "F0", "XX"})


def verdict(error: SqlFailed) -> PostgresError:
    """Return what a failed statement of a request is answered with: itself if the failure is ours, else a conflict."""
    if error.sqlstate is None or error.sqlstate[:2] in OURS:
        return error
    return Conflicting(str(error))
