"""From a spec to a complete PGDATA: everything that must be done before Postgres starts (contract 02 §3.2, §3.3)."""

from __future__ import annotations

from functools import partial

import trio

from trio_compute.errors import ComputeError, SpecError, StorageError
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.schedules import basebackup_delays, sync_safekeepers_delays
from trio_compute.plan.subscriptions import subscriptions_pending
from trio_compute.ports import Host
from trio_compute.services.life import Life
from trio_compute.services.supervise import run_together
from trio_compute.telemetry.logging import get_logger

log = get_logger("prepare")


async def prepare(life: Life, parsed: ParsedSpec) -> None:
    """Do all that must be done before Postgres starts, beside each other; raise ComputeError (contract 02 §3.2)."""
    await run_together(
        partial(prepare_pgdata, life.compute, life.host, parsed),
        partial(life.extensions.prepare, parsed),
    )


async def prepare_pgdata(compute: Compute, host: Host, parsed: ParsedSpec) -> None:
    """Fill PGDATA for a spec; raise ComputeError with the whole cause chain in its text."""
    with compute.spans.measure("prepare_pgdata"):
        host.require_startable(parsed)
        lsn = await _choose_lsn(compute, host, parsed)
        await _get_basebackup(compute, host, parsed, lsn)
        await host.complete_pgdata(parsed)


async def _choose_lsn(compute: Compute, host: Host, parsed: ParsedSpec) -> Lsn:
    """Return the LSN to start from; meanwhile PGDATA is made ready for a sync and for the basebackup."""
    if not parsed.is_primary:
        await _begin_pgdata(compute, host, parsed)
        return parsed.pinned_lsn
    proven: list[Lsn | None] = []
    async with trio.open_nursery() as nursery:

        async def check() -> None:
            await host.warm_up()
            with compute.spans.measure("check_safekeepers_synced"):
                proven.append(await host.check_safekeepers(parsed))

        nursery.start_soon(check)
        await _begin_pgdata(compute, host, parsed)
    return proven[0] if proven[0] is not None else await sync_with_retries(compute, host, parsed)


async def _begin_pgdata(compute: Compute, host: Host, parsed: ParsedSpec) -> None:
    with compute.spans.measure("pgdata.recreate"):
        await host.recreate_pgdata()
        # The workers of subscriptions that a branch inherits must stand still until these are dropped.
        pending = subscriptions_pending(parsed, dropped=None)
        await host.write_postgresql_conf(parsed, drop_subscriptions=pending)


async def sync_with_retries(compute: Compute, host: Host, parsed: ParsedSpec) -> Lsn:
    """Sync the safekeepers, up to six times; raise StorageError after the last failure (contract 07 §7)."""
    delays = (*sync_safekeepers_delays(), None)
    for delay in delays:
        try:
            with compute.spans.measure("sync_safekeepers"):
                return await host.sync_safekeepers(parsed)
        except ComputeError as error:
            if delay is None:
                raise StorageError("failed to sync safekeepers") from error
            log.warning("sync-safekeepers failed", error=error, retry_in_seconds=delay)
        await trio.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


async def _get_basebackup(compute: Compute, host: Host, parsed: ParsedSpec, lsn: Lsn) -> None:
    delays = (*basebackup_delays(compute.settings.basebackup_retries), None)
    with compute.spans.measure("get_basebackup", lsn=str(lsn)):
        for delay in delays:
            try:
                with compute.spans.measure("try_get_basebackup", lsn=str(lsn)) as span:
                    received = await host.fetch_basebackup(parsed, lsn, compute.spans)
                    span.attributes = {**span.attributes, "bytes": received.compressed_bytes, "files": received.files}
                return
            except SpecError:
                raise  # the next attempt would find the same spec (C-02)
            except ComputeError as error:
                if delay is None:
                    raise StorageError(f"failed to get basebackup@{lsn}") from error
                log.warning("basebackup failed", lsn=lsn, error=error, retry_in_seconds=delay)
            await trio.sleep(delay)
            await host.clean_pgdata()
