"""Bring a running Postgres to what a spec wants, at the end of start-up and for each later spec (02 §3.4, §7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_compute.errors import cause_chain
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.parsed import ParsedSpec
from trio_compute.plan.postgres_conf import OVERRIDE_TEXT
from trio_compute.ports import Host
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.services.apply_queue import ApplyQueue, Rejected, Succeeded
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

UNDO_TIMEOUT_SECONDS = 10.0

log = get_logger("configure")


async def configure_as_primary(compute: Compute, host: Host, postmaster: Postmaster, parsed: ParsedSpec) -> None:
    """Apply the catalog unless the spec says to skip it; replicas have nothing to configure (contract 02 §3.4)."""
    with compute.spans.measure("configure_as_primary"):
        await _apply_catalog(compute, host, postmaster, parsed)


async def reconfigure(compute: Compute, host: Host, postmaster: Postmaster, parsed: ParsedSpec) -> None:
    """Write the new configuration, reload it, apply the catalog (contract 02 §7)."""
    with compute.spans.measure("reconfigure"):
        await host.write_postgresql_conf(parsed)
        postmaster.reload()
        await _apply_catalog(compute, host, postmaster, parsed)


async def serve_apply_queue(compute: Compute, host: Host, postmaster: Postmaster, queue: ApplyQueue) -> None:
    """Apply queued specs one after another for as long as Postgres runs; a failed one leaves the old spec current."""
    while True:
        job = await queue.next()
        await trio.lowlevel.checkpoint_if_cancelled()
        compute.apply(ev.ApplyBegan())
        try:
            await reconfigure(compute, host, postmaster, job.spec)
        except Exception as error:  # noqa: BLE001  (D-26: whatever goes wrong must end in failed, not in a stuck status)
            await trio.lowlevel.checkpoint_if_cancelled()
            text = redact(cause_chain(error))
            log.error("reconfiguration failed", error=text)
            compute.apply(ev.ApplyFailed(error=text))
            job.settle(Rejected(text))
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
            compute.apply(ev.Applied(spec=job.spec))
            job.settle(Succeeded())


async def _apply_catalog(compute: Compute, host: Host, postmaster: Postmaster, parsed: ParsedSpec) -> None:
    if parsed.spec.skip_pg_catalog_updates or not parsed.is_primary:
        return
    async with _size_quota_lifted(host, postmaster):
        with compute.spans.measure("apply_spec_sql"):
            await host.apply_catalog(parsed)


@asynccontextmanager
async def _size_quota_lifted(host: Host, postmaster: Postmaster) -> AsyncIterator[None]:
    """Lift the cluster size quota, and put it back in every way of leaving (04 F-11, F-12)."""
    await host.write_override(OVERRIDE_TEXT)
    postmaster.reload()
    try:
        yield
    finally:
        with trio.move_on_after(UNDO_TIMEOUT_SECONDS, shield=True):
            await host.write_override("")
            postmaster.reload()
