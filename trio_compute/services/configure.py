"""Bring a running Postgres to what a spec wants, at the end of start-up and for each later spec (02 §3.4, §7, §8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_compute.errors import HostError, SpecError, cause_chain
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute, DatabaseFailure
from trio_compute.lifecycle.ending import Ending, Urgency
from trio_compute.lifecycle.status import Status
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.plan.catalog.failures import CatalogFailed, Failure
from trio_compute.plan.postgres_conf import OVERRIDE_TEXT
from trio_compute.plan.restart import changed_identity, restart_required
from trio_compute.ports import Host
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.services.apply_queue import ApplyQueue, Job, PromotionJob, Rejected, Succeeded
from trio_compute.services.promotion import Promotions
from trio_compute.services.supervise import best_effort
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import DATABASES_FAILED, metrics
from trio_compute.telemetry.redaction import learn_spec, redact
from trio_compute.telemetry.spans import placed

UNDO_TIMEOUT_SECONDS = 10.0
REFRESH_PAUSE_SECONDS = 5.0
LONGEST_REFRESH_PAUSE_SECONDS = 60.0
SUBSCRIPTIONS_PHASE = "DropLogicalSubscriptions"

log = get_logger("configure")


class Configurator:
    """Apply changes to one running Postgres, one after another."""

    def __init__(
        self, compute: Compute, host: Host, postmaster: Postmaster, queue: ApplyQueue, promotions: Promotions
    ) -> None:
        self._compute = compute
        self._host = host
        self._postmaster = postmaster
        self._queue = queue
        self._promotions = promotions
        self._started_with: ParsedSpec | None = None
        self._refresh_pause = REFRESH_PAUSE_SECONDS

    async def configure_as_primary(self, parsed: ParsedSpec) -> None:
        """Apply the catalog unless the spec says to skip it; replicas have nothing to configure (02 §3.4)."""
        self._started_with = parsed
        with self._compute.spans.measure("configure_as_primary"):
            await self._apply_catalog(parsed, is_start=True)

    async def serve(self) -> None:
        """Finish the start, then apply what is queued for as long as Postgres runs (D-08: also after a failure).

        Both in one task: no two of us ever change the catalog at the same time (05 K-14).
        """
        await self._finish_start()
        while True:
            job = await self._queue.next()
            await trio.lowlevel.checkpoint_if_cancelled()
            match job:
                case None:
                    await self._refresh()
                case PromotionJob():
                    with placed(job.place):
                        await self._promotions.run(job, self)
                case Job():
                    with placed(job.place):
                        await self._apply(job)

    async def _finish_start(self) -> None:
        """Run migrations and the update of the neon extension, which nobody waits for (05 §13, §14)."""
        parsed = self._started_with
        if parsed is None or not parsed.is_primary:
            return
        with self._compute.spans.trace("post_apply_config"):
            if not parsed.spec.skip_pg_catalog_updates:
                await self._migrate()
            await best_effort("neon extension upgrade", self._upgrade_neon_extension)

    async def _upgrade_neon_extension(self) -> None:
        with self._compute.spans.trace("handle_neon_extension_upgrade"):
            await self._host.upgrade_neon_extension()

    async def _migrate(self) -> None:
        try:
            with self._compute.spans.measure("migrations"):
                async with _size_quota_lifted(self._host, self._postmaster):
                    await self._host.run_migrations()
            self._compute.notices.migration_error = None
        except Exception as failure:  # noqa: BLE001  (a compute without its migrations works; the next start tries again)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._compute.notices.migration_error = redact(cause_chain(failure))
            log.error("migrations failed", error=self._compute.notices.migration_error)

    async def _apply(self, job: Job) -> None:
        compute = self._compute
        compute.apply(ev.ApplyBegan())
        # Looked at again: a promotion may have come first.
        failure = _other_identity(compute.state.spec, job.spec) or await self.reconfigure(job.spec)
        if failure is not None:
            # The old spec stays current (D-05), its text is not lost (D-20).
            compute.apply(ev.ApplyFailed(error=failure.error))
            job.settle(failure)
        else:
            await self._promotions.drop_overrides()
            compute.apply(ev.Applied(spec=job.spec, restart_required=self.waiting_for_restart(job.spec)))
            job.settle(Succeeded())

    async def _refresh(self) -> None:
        """Fetch the configuration and apply it if it differs, or if the last change failed (D-05, D-07, D-09)."""
        compute, current = self._compute, self._compute.state.spec
        if compute.state.status is not Status.REFRESH_CONFIGURATION_PENDING:
            # It was asked for during the start and remembered (D-50).
            compute.apply(ev.RefreshRequested())
        compute.apply(ev.RefreshBegan())
        try:
            config = await self._host.obtain_config()
            if config.spec is None:
                await trio.lowlevel.checkpoint_if_cancelled()
                compute.end(Ending.EMPTY_CONFIG, Urgency.PRESSED)
                return
            wanted = parse_spec(config.spec)
            learn_spec(wanted)
            refuse_another_identity(current, wanted)
            rejected = None
        except Exception as failure:  # noqa: BLE001  (D-26: whatever went wrong, the refresh is tried again)
            rejected = Rejected(redact(cause_chain(failure)))
        await trio.lowlevel.checkpoint_if_cancelled()
        if rejected is None and wanted == current and compute.state.error is None:
            compute.apply(ev.RefreshUnchanged())
            self._queue.hold_refresh(REFRESH_PAUSE_SECONDS)
            return
        rejected = rejected or await self.reconfigure(wanted)
        if rejected is None:
            await self._promotions.drop_overrides()
            compute.apply(ev.Refreshed(spec=wanted, restart_required=self.waiting_for_restart(wanted)))
            self._refresh_pause = REFRESH_PAUSE_SECONDS
        else:
            log.warning("refresh failed", error=rejected.error, retry_in_seconds=self._refresh_pause)
            compute.apply(ev.RefreshFailed(error=rejected.error))
            self._queue.want_refresh()
            self._queue.hold_refresh(self._refresh_pause)
            self._refresh_pause = min(self._refresh_pause * 2, LONGEST_REFRESH_PAUSE_SECONDS)

    async def reconfigure(self, parsed: ParsedSpec) -> Rejected | None:
        """Write the configuration, reload it, apply the catalog; return what went wrong (02 §7)."""
        for warning in parsed.warnings:
            log.warning("spec", about=warning)
        try:
            with self._compute.spans.measure("reconfigure"):
                await self._host.write_postgresql_conf(parsed)
                await self._reload_and_look()
                await self._apply_catalog(parsed, is_start=False)
        except Exception as failure:  # noqa: BLE001  (D-26: any error must end in failed, not in a stuck status)
            await trio.lowlevel.checkpoint_if_cancelled()
            error = redact(cause_chain(failure))
            log.error("reconfiguration failed", error=error)
            return Rejected(error, _failures_of(failure))
        await trio.lowlevel.checkpoint_if_cancelled()
        return None

    async def _reload_and_look(self) -> None:
        """Reload, and take note of what Postgres cannot read or will only take over at a restart (04 F-13)."""
        with self._compute.spans.trace("pg_reload_conf"):
            report = await self._host.reload(self._postmaster)
        self._compute.notices.pending_restart = report.pending_restart
        if report.pending_restart:
            log.warning("settings wait for a restart", settings=", ".join(report.pending_restart))
        for error in report.errors:
            log.error("postgresql.conf has an error", about=error)

    def waiting_for_restart(self, parsed: ParsedSpec) -> tuple[str, ...]:
        """Return the fields of a spec that take effect only at the next start (D-48)."""
        fields = () if self._started_with is None else tuple(restart_required(self._started_with, parsed))
        if fields:
            log.warning("changes wait for a restart", fields=", ".join(fields))
        return fields

    async def _apply_catalog(self, parsed: ParsedSpec, *, is_start: bool) -> None:
        if parsed.spec.skip_pg_catalog_updates or not parsed.is_primary:
            return
        spans = self._compute.spans
        with spans.trace("apply_config"):
            async with _size_quota_lifted(self._host, self._postmaster):
                with spans.measure("apply_spec_sql"):
                    failed = await self._apply_and_note(parsed, is_start=is_start)
                # Before the reload at the end of the block, which makes both effective (04 F-09). Inherited
                # subscriptions that could not be dropped must not begin to run.
                if not any(failure.phase == SUBSCRIPTIONS_PHASE for failure in failed):
                    await self._host.enable_subscribers()

    async def _apply_and_note(self, parsed: ParsedSpec, *, is_start: bool) -> tuple[Failure, ...]:
        """Apply the catalog and note what failed; a start goes on if only some databases suffer from it (T-08)."""
        try:
            await self._host.apply_catalog(parsed, self._compute.spans, is_start=is_start)
        except CatalogFailed as failed:
            self._note_failures(failed.failures)
            if not is_start or failed.concerns_cluster:
                raise
            for failure in failed.failures:
                log.error("a database is not as wanted; the next apply tries again", error=failure)
            return failed.failures
        self._note_failures(())
        return ()

    def _note_failures(self, failures: tuple[Failure, ...]) -> None:
        noted = tuple(DatabaseFailure(failure.database, failure.phase, str(failure)) for failure in failures)
        self._compute.notices.databases_failed = noted
        places = {(failure.phase, failure.database) for failure in failures}
        metrics.replace(DATABASES_FAILED, {(phase,): n for phase, n in Counter(p for p, _ in places).items()})


def _failures_of(error: BaseException | None) -> tuple[Failure, ...]:
    """Return which objects of the catalog are at fault, also if another error came on top."""
    while error is not None and not isinstance(error, CatalogFailed):
        error = error.__cause__
    return () if error is None else error.failures


def refuse_another_identity(current: ParsedSpec | None, wanted: ParsedSpec) -> None:
    """Raise SpecError if a spec would turn a running compute into another one (D-47)."""
    field = None if current is None else changed_identity(current, wanted)
    if field is not None:
        raise SpecError(f"cannot change {field} of a running compute")


def _other_identity(current: ParsedSpec | None, wanted: ParsedSpec) -> Rejected | None:
    try:
        refuse_another_identity(current, wanted)
    except SpecError as error:
        return Rejected(str(error))
    return None


@asynccontextmanager
async def _size_quota_lifted(host: Host, postmaster: Postmaster) -> AsyncIterator[None]:
    """Lift the cluster size quota, and put it back in every way of leaving (04 F-11, F-12).

    If that fails after another failure, the error that is raised tells both.
    """
    await host.write_override(OVERRIDE_TEXT)
    postmaster.reload()
    try:
        yield
    except Exception as error:
        try:
            await _restore_quota(host, postmaster)
        except Exception as second:  # noqa: BLE001  (whatever it is, the first error must not be lost)
            text = f"{cause_chain(error)}; and the size quota is still lifted: {cause_chain(second)}"
            raise HostError(text) from error
        raise
    except BaseException:
        await _restore_quota(host, postmaster)
        raise
    await _restore_quota(host, postmaster)


async def _restore_quota(host: Host, postmaster: Postmaster) -> None:
    with trio.move_on_after(UNDO_TIMEOUT_SECONDS, shield=True):
        await host.write_override("")
        postmaster.reload()
