"""Watch Postgres for as long as it runs: when clients were last active, and whether it answers (contract 06 §2)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio

from trio_compute.errors import cause_chain
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.responses import last_active_text
from trio_compute.plan.activity import Statistics, Uptime, answered, last_activity, silent
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import (
    ACTIVITY_CHECK_AGE,
    ACTIVITY_CHECK_DURATION,
    CURRENT_DOWNTIME,
    TOTAL_DOWNTIME,
    metrics,
)
from trio_compute.telemetry.redaction import redact

if TYPE_CHECKING:
    from trio_compute.db.activity import Watch

PAUSE_SECONDS = 0.5
STATISTICS_FEATURE = "activity_monitor_experimental"
# While Postgres stays down, its downtime is told that often and not twice a second.
REPORT_SECONDS = 10.0
TELL_AFTER = dt.timedelta(seconds=1)

OpenWatch = Callable[[], "AbstractAsyncContextManager[Watch]"]

log = get_logger("compute_monitor")


class ActivityMonitor:
    """Look at Postgres twice a second and tell the compute what that means."""

    def __init__(self, compute: Compute, open_watch: OpenWatch) -> None:
        self._compute = compute
        self._open_watch = open_watch
        self._last_active: dt.datetime | None = None
        self._statistics: Statistics | None = None
        self._uptime = Uptime.since(trio.current_time())
        self._up_at = dt.datetime.now(dt.UTC)  # for people; durations come from the monotonic clock
        self._reported_at = float("-inf")
        self._told: dt.datetime | None = None

    async def serve(self) -> None:
        """Look again and again until cancelled; to be started once the compute runs, so that its start is no activity.

        Whatever status comes then, a running Postgres is watched (D-24).
        """
        self._uptime = Uptime.since(trio.current_time())
        self._show_downtime()
        while True:
            try:
                await self._look_until_that_fails()
            except Exception as error:  # noqa: BLE001  (whatever went wrong, the watch must not end in silence)
                self._report_silence(error)
            await trio.sleep(PAUSE_SECONDS)

    async def _look_until_that_fails(self) -> None:
        async with self._open_watch() as watch:
            while True:
                await self._look(watch)
                await trio.sleep(PAUSE_SECONDS)

    async def _look(self, watch: Watch) -> None:
        spec = self._compute.state.spec
        asked = spec is not None and STATISTICS_FEATURE in spec.spec.features
        began = trio.current_time()
        seen = await watch.look(statistics=asked)
        metrics.observe(ACTIVITY_CHECK_DURATION, trio.current_time() - began)
        self._last_active = last_activity(seen, self._last_active, self._statistics)
        self._statistics = seen.statistics
        self._report_answer()
        self._offer_activity()

    def _offer_activity(self) -> None:
        at, known = self._last_active, self._compute.state.last_active
        if at is None or (known is not None and at <= known) or not self._compute.allows(ev.Active):
            return
        self._compute.apply(ev.Active(at=at))
        if self._told is None or at - self._told >= TELL_AFTER:
            self._publish()

    def _report_answer(self) -> None:
        was_down, self._uptime = self._uptime.is_down, answered(self._uptime, trio.current_time())
        if was_down:
            log.info("Postgres answers again", downtime_info=self._downtime_info())
            self._compute.notices.activity_error = None
            self._publish()
        self._up_at = dt.datetime.now(dt.UTC)
        self._show_downtime()

    def _report_silence(self, error: Exception) -> None:
        before, now = self._uptime, trio.current_time()
        self._uptime = silent(before, now)
        self._show_downtime(self._uptime.total_ms - before.total_ms)
        self._compute.notices.activity_error = redact(cause_chain(error))
        if not before.is_down or now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            log.error("Postgres does not answer", error=cause_chain(error), downtime_info=self._downtime_info())
        if not before.is_down:
            self._publish()

    def _show_downtime(self, more_ms: int = 0) -> None:
        metrics.set(CURRENT_DOWNTIME, self._uptime.current_ms)
        metrics.increment(TOTAL_DOWNTIME, more_ms)
        metrics.set(ACTIVITY_CHECK_AGE, self._uptime.looked_at - self._uptime.up_at)

    def _downtime_info(self) -> str:
        uptime = self._uptime
        return f"total_ms: {uptime.total_ms}, current_ms: {uptime.current_ms:.0f}, last_up: {self._up_at.isoformat()}"

    def _publish(self) -> None:
        """Tell what changed to who listens."""
        at = self._told = self._compute.state.last_active
        text = None if at is None else last_active_text(at)
        self._compute.feed.publish("activity", {"last_active": text, "up": not self._uptime.is_down})
