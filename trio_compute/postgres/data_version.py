"""Which Postgres a data directory is of."""

from __future__ import annotations

from pathlib import Path

from trio_compute.errors import HostError


def major_of(pgdata: Path) -> int:
    """Return the major version that PG_VERSION names; raise HostError if it cannot be told."""
    path = pgdata / "PG_VERSION"
    try:
        return int(path.read_text(encoding="ascii").strip().partition(".")[0])
    except (OSError, ValueError) as error:
        raise HostError(f"cannot tell the version of Postgres from {path}") from error
