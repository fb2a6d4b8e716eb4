"""Ask safekeepers whether they are in sync, and let Postgres bring them there (contract 07 §6 and §7)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from trio_compute.db.target import Target
from trio_compute.errors import StorageError
from trio_compute.host.process import run_command
from trio_compute.host.run_as import RunAs
from trio_compute.model.addresses import host_port_text, safekeeper_address
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.quorum import Ballot, TimelineStatus
from trio_compute.postgres.logs import collect_logs
from trio_compute.storage.texts import brief, text_rows
from trio_compute.telemetry.logging import get_logger

log = get_logger("safekeepers")


async def check_safekeepers_synced(parsed: ParsedSpec, *, timeout_seconds: float) -> Lsn | None:
    """Return the LSN at which a quorum agrees, or None when nothing is proven; no failure here is fatal."""
    ballot = Ballot(len(parsed.safekeepers))
    async with trio.open_nursery() as nursery:

        async def ask(host: str, port: int) -> None:
            try:
                ballot.answer(await _ping(host, port, parsed, timeout_seconds))
            except StorageError as error:
                log.info("safekeeper did not answer", safekeeper=host_port_text(host, port), error=error)
                ballot.failure()
            if ballot.decided:
                nursery.cancel_scope.cancel()

        for entry in parsed.safekeepers:
            nursery.start_soon(ask, *safekeeper_address(entry))
    lsn = ballot.synced_at()
    log.info("safekeepers checked", synced_at=lsn)
    return lsn


async def _ping(host: str, port: int, parsed: ParsedSpec, timeout_seconds: float) -> TimelineStatus | None:
    import psycopg

    from trio_compute.db.connection import ConnectFailed, open_connection

    target = Target(
        host=host,
        port=port,
        user="no_user",
        dbname="no_user",
        password=parsed.spec.storage_auth_token or "",
        options=f"-c timeline_id={parsed.timeline_id} tenant_id={parsed.tenant_id}",
    )
    rows: list[list[str | None]] = []
    with trio.move_on_after(timeout_seconds) as patience:
        try:
            async with open_connection(target, connect_timeout_seconds=timeout_seconds) as connection:
                connection.cancel_seconds = 0.0  # whoever is too slow for a ping is not asked to cancel it
                rows = text_rows((await connection.execute("TIMELINE_STATUS")).pgresult, peer="safekeeper")
        except (psycopg.Error, ConnectFailed) as error:
            raise StorageError(brief(error)) from None
    if patience.cancelled_caught:
        raise StorageError(f"no answer within {round(timeout_seconds * 1000)} ms")
    return _timeline_status(rows)


def _timeline_status(rows: list[list[str | None]]) -> TimelineStatus | None:
    """Return what the one row says, or None if there is none: the timeline is not known there."""
    if not rows:
        return None
    if len(rows) > 1:
        raise StorageError(f"unusable TIMELINE_STATUS: {len(rows)} rows")
    try:
        flush, commit = (Lsn.parse(str(value)) for value in rows[0])
    except ValueError as error:
        raise StorageError(f"unusable TIMELINE_STATUS: {brief(error)}") from None
    return TimelineStatus(flush, commit)


async def sync_safekeepers(
    argv: list[str],
    pgdata: Path,
    parsed: ParsedSpec,
    *,
    environ: Mapping[str, str],
    run_as: RunAs,
    grace_seconds: float,
) -> Lsn:
    """Run `postgres --sync-safekeepers` once and return the commit LSN; raise StorageError when it fails."""
    environ = {**environ, "PGDATA": str(pgdata)}
    if parsed.spec.storage_auth_token is not None:
        environ["NEON_AUTH_TOKEN"] = parsed.spec.storage_auth_token
    output = await run_command(
        argv, environ=environ, run_as=run_as, grace_seconds=grace_seconds, follow_stderr=collect_logs
    )
    if output.returncode != 0:
        raise StorageError(f"postgres --sync-safekeepers failed with code {output.returncode}")
    text = output.stdout.decode(errors="replace").strip()
    try:
        return Lsn.parse(text)
    except ValueError as error:
        raise StorageError(f"postgres --sync-safekeepers printed no LSN: {brief(error)}") from None
