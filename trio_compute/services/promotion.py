"""Make a replica the primary (contract 08 §6): one promotion at a time, in the queue of all changes (P-06).

What is remembered across attempts, of which a control plane may make several (P-01): whether the server was promoted,
and the result once all of it succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

import trio
from msgspec import to_builtins

from trio_compute.db.target import Target
from trio_compute.errors import ComputeError, PostgresError, cause_chain
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.ids import Lsn
from trio_compute.model.lfc import NotPrewarmed, PrewarmFailed, Prewarming
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.promotion import PromoteCompleted, PromoteFailed
from trio_compute.plan.promotion import SAFEKEEPERS, STANDBY_NAMES, promotion_overrides, with_port
from trio_compute.ports import Host
from trio_compute.services.apply_queue import ApplyQueue, PromotionJob, Rejected
from trio_compute.services.lfc import Lfc
from trio_compute.telemetry import metrics as names
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import metrics
from trio_compute.telemetry.redaction import redact

if TYPE_CHECKING:
    from trio_compute.db.promotion import PromotionSession

FAILPOINT = "compute-promotion"
CHECKS = 21
CHECK_SECONDS = 1.0
UNDO_SECONDS = 10.0

log = get_logger("promotion")


class Applier(Protocol):
    """Bring the running Postgres to what a spec wants."""

    async def reconfigure(self, parsed: ParsedSpec) -> Rejected | None:
        """Apply a spec; return what went wrong."""
        ...

    def waiting_for_restart(self, parsed: ParsedSpec) -> tuple[str, ...]:
        """Return the fields of a spec that take effect only at the next start."""
        ...


class Promotions:
    """Hold what became of the promotions of this process, and carry out the next one."""

    def __init__(self, compute: Compute, host: Host, queue: ApplyQueue, lfc: Lfc) -> None:
        self._compute = compute
        self._host = host
        self._queue = queue
        self._lfc = lfc
        self._job: PromotionJob | None = None
        self._completed = False
        self._promote_called = False
        self._promoted = False
        self._milliseconds = {"lsn_wait_time_ms": 0, "pg_promote_time_ms": 0}
        self._overrides_left = False

    def ask(self, parsed: ParsedSpec, wal_flush_lsn: Lsn) -> PromotionJob:
        """Return the promotion that runs or has succeeded, else a new one that was queued (D-29)."""
        if self._job is None or (self._job.settled and not self._completed):
            self._job = self._queue.submit_promotion(parsed, wal_flush_lsn)
        return self._job

    async def run(self, job: PromotionJob, applier: Applier) -> None:
        """Carry out a promotion and settle it, whatever happens but the end of the compute."""
        metrics.increment(names.PROMOTIONS)
        self._tell("began")
        try:
            with self._compute.spans.measure("promotion"):
                outcome = await self._promote(job, applier)
        except Exception as error:  # noqa: BLE001  (D-26: whatever it was, the next attempt must be possible)
            await trio.lowlevel.checkpoint_if_cancelled()
            failure = PromoteFailed(redact(cause_chain(error)))
            metrics.increment(names.PROMOTION_ERRORS)
            log.error("promotion failed", error=failure.error, promoted=self._promoted)
            self._tell("failed", error=failure.error)
            job.settle(failure)
            return
        self._completed = True
        log.info("promoted", **to_builtins(outcome))
        self._tell("completed", **to_builtins(outcome))
        job.settle(outcome)

    async def drop_overrides(self) -> None:
        """Take back what a promotion set by ALTER SYSTEM and postgresql.conf says by now; best effort (P-04)."""
        if not self._overrides_left:
            return
        try:
            with self._compute.spans.measure("promotion.reset_overrides"):
                async with self._host.open_promotion_session() as session:
                    kept = await session.reset(replaced_only=True)
        except ComputeError as error:
            log.warning("the overrides of the promotion are still in force", error=redact(cause_chain(error)))
            return
        self._overrides_left = bool(kept)
        if kept:
            log.warning("the spec lacks settings of a primary; they stay as overrides", settings=", ".join(kept))

    async def _promote(self, job: PromotionJob, applier: Applier) -> PromoteCompleted:
        spans = self._compute.spans
        if not self._promoted:
            self._require_ready()
        async with AsyncExitStack() as stack:
            with spans.measure("promotion.connect"), _while("connecting to postgres"):
                session = await stack.enter_async_context(self._host.open_promotion_session())
            if not self._promoted:
                await self._end_recovery(session, job)
            with spans.measure("promotion.reconfigure") as reconfiguration:
                await self._require_writable(session, job, applier)
                await stack.aclose()
                rejected = await applier.reconfigure(self._become(job, applier))
        if rejected is not None:
            raise PostgresError(rejected.error)
        await self.drop_overrides()
        return PromoteCompleted(**self._milliseconds, reconfigure_time_ms=reconfiguration.milliseconds)

    def _require_ready(self) -> None:
        """Raise PostgresError unless this is a replica whose cache was seen to (P-01: only for this attempt)."""
        current, prewarm = self._compute.state.spec, self._lfc.prewarm_state
        assert current is not None, "only a compute that runs is promoted"
        if current.mode != "replica":
            raise PostgresError(f'compute mode "{current.mode}" is not replica')
        if isinstance(prewarm, NotPrewarmed | Prewarming):
            raise PostgresError(f"compute {type(prewarm).__name__}")
        if isinstance(prewarm, PrewarmFailed):
            log.warning("promoting with a cold cache", prewarm_error=prewarm.error)

    async def _end_recovery(self, session: PromotionSession, job: PromotionJob) -> None:
        spans = self._compute.spans
        with spans.measure("promotion.lsn_wait") as waited:
            caught_up = await self._catch_up(session, job.wal_flush_lsn)
        self._milliseconds["lsn_wait_time_ms"] = waited.milliseconds
        if caught_up:
            with spans.measure("promotion.pg_promote") as promoted:
                await self._set_and_promote(session, job.spec)
            self._milliseconds["pg_promote_time_ms"] = promoted.milliseconds
        self._promoted = True

    async def _catch_up(self, session: PromotionSession, wanted: Lsn) -> bool:
        """Wait until the WAL is replayed up to an LSN; return False if the server turns out to be promoted already."""
        began = trio.current_time()
        for number in range(CHECKS):
            await trio.sleep_until(began + number * CHECK_SECONDS)
            with _while("querying the replay LSN"):
                replayed = await session.replayed()
            if replayed is None and self._promote_called:
                log.info("an earlier attempt had promoted the server")
                return False
            if replayed is None:
                raise PostgresError("not in recovery")
            if replayed >= wanted:
                return True
            log.info("waiting for the WAL", replayed=replayed, wanted=wanted)
        raise PostgresError(f"didn't catch up with primary in {CHECKS - 1} retries")

    async def _set_and_promote(self, session: PromotionSession, parsed: ParsedSpec) -> None:
        spans = self._compute.spans
        overrides = promotion_overrides(parsed, self._host.render_postgresql_conf(parsed))
        self._overrides_left = True
        called_before, self._promote_called = self._promote_called, False
        try:
            await self._set(session, overrides)
            if failpoints.returns(FAILPOINT) is not None:
                raise PostgresError(f"{FAILPOINT} failpoint")
            self._promote_called = True
            with spans.measure("promotion.promote"), _while("pg_promote"):
                promoted = await session.promote()
        except Exception:
            if not self._promote_called:
                self._promote_called = called_before
                await self._undo()
            raise
        if not promoted:
            raise PostgresError("pg_promote() failed")

    async def _set(self, session: PromotionSession, overrides: dict[str, str]) -> None:
        spans = self._compute.spans
        with spans.measure("promotion.set_safekeepers"), _while("setting safekeepers"):
            await session.override(SAFEKEEPERS, overrides[SAFEKEEPERS])
        with spans.measure("promotion.set_standby_names"), _while("setting synchronous_standby_names"):
            await session.override(STANDBY_NAMES, overrides[STANDBY_NAMES])
        with spans.measure("promotion.reload"), _while("reloading postgres config"):
            await session.reload(SAFEKEEPERS, overrides[SAFEKEEPERS])

    async def _undo(self) -> None:
        """Take both settings back after a failure that left the server a replica; best effort (P-10)."""
        try:
            with trio.fail_after(UNDO_SECONDS):
                async with self._host.open_promotion_session() as session:
                    await session.reset(replaced_only=False)
            self._overrides_left = False
        except (ComputeError, trio.TooSlowError) as error:
            log.warning("the settings of the failed promotion stay", error=redact(cause_chain(error)))

    async def _require_writable(self, session: PromotionSession, job: PromotionJob, applier: Applier) -> None:
        with self._compute.spans.measure("promotion.read_only_check"), _while("querying transaction_read_only"):
            try:
                read_only = await session.is_read_only()
            except BaseException:
                # The server is a primary, though we cannot see it: an end that comes now must sync the safekeepers.
                self._become(job, applier)
                raise
        if read_only:
            raise PostgresError("replica in read only mode after promotion")

    def _become(self, job: PromotionJob, applier: Applier) -> ParsedSpec:
        """Make the spec of the request the current one, but for the port, which is this node's (P-15)."""
        parsed = with_port(job.spec, Target.parse(self._compute.settings.connstr).port)
        if self._compute.allows(ev.Promoted):
            self._compute.apply(ev.Promoted(spec=parsed, restart_required=applier.waiting_for_restart(parsed)))
        return parsed

    def _tell(self, step: str, **data: object) -> None:
        self._compute.feed.publish("promotion", {"status": step, **data})


@contextmanager
def _while(what: str) -> Iterator[None]:
    """Say in an error what was being done."""
    try:
        yield
    except ComputeError as error:
        raise PostgresError(what) from error
