"""Whether Postgres takes connections, as its own pg_isready sees it (contract 03 §5.5, A-16)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from trio_compute.db.target import Target, stated_port
from trio_compute.errors import PostgresError
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.postgres.binaries import sibling
from trio_compute.storage.texts import brief

PATIENCE_SECONDS = 5.0


async def check_accepting(
    pgbin: Path,
    connstr: str,
    *,
    environ: Mapping[str, str],
    run_as: RunAs,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Return if Postgres accepts connections at the port of its URL; raise PostgresError, HostError otherwise."""
    port = stated_port(connstr)
    if port is None:
        raise PostgresError("Failed to get the port from the connection string")
    argv = [str(sibling(pgbin, "pg_isready")), "-p", str(port)]
    # Without a host it would look for a socket in a directory that was chosen when it was compiled.
    environ = {**environ, "PGHOST": Target.parse(connstr).host}
    try:
        with trio.fail_after(patience_seconds):
            output = await run_command(argv, environ=environ, run_as=run_as)
    except trio.TooSlowError:
        raise PostgresError(f"pg_isready took longer than {patience_seconds:g} s") from None
    if output.returncode != 0:
        said = brief((output.stdout + output.stderr).decode(errors="replace"))
        raise PostgresError(f"pg_isready failed with code {output.returncode}: {said}")
