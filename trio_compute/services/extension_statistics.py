"""Collect now and then which extensions are installed (contract 06 §7, R-12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trio_compute.errors import PostgresError, cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.decode import encode
from trio_compute.plan.extension_statistics import Statistics, base_at_start, base_seconds, interval_seconds
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import INSTALLED_EXTENSIONS, metrics

Collect = Callable[[], Awaitable[Statistics]]

log = get_logger("extensions")


class ExtensionStatistics:
    """Collect at once and then at an interval that follows the current spec."""

    def __init__(self, compute: Compute, collect: Collect) -> None:
        self._compute = compute
        self._collect = collect
        self._started_with = compute.state.spec
        self._failures_in_a_row = 0

    async def serve(self) -> None:
        """Collect again and again until cancelled; to be started when the start is over, in every mode."""
        # People look for these three markers.
        log.info("[NEON_EXT_SPAWN]", interval_seconds=self._interval_seconds())
        while True:
            await self._collect_once()
            await self._pause()

    async def _collect_once(self) -> None:
        try:
            statistics = await self._collect()
        except PostgresError as error:
            self._failures_in_a_row += 1
            log.error("installed extensions are not known", error=cause_chain(error))
            return
        self._failures_in_a_row = 0
        # As a whole: what is not installed any more must not keep its last value.
        metrics.replace(
            INSTALLED_EXTENSIONS,
            {
                (key.extname, key.version, key.owned_by_superuser): count
                for key, count in statistics.databases_with.items()
            },
        )
        log.info(f"[NEON_EXT_STAT] {encode({'extensions': statistics.entries()}).decode()}")

    async def _pause(self) -> None:
        """Wait for the interval; a spec that changes it changes the present pause too."""
        began, paused = trio.current_time(), False
        while not paused:
            spec, interval = self._compute.state.spec, self._interval_seconds()
            log.info("[NEON_EXT_INT_SLEEP]", interval_seconds=interval)
            with trio.move_on_at(began + interval) as waiting:
                await self._compute.until_spec(lambda now, before=spec: now is not before)  # type: ignore[misc]
            paused = waiting.cancelled_caught

    def _interval_seconds(self) -> int:
        spec = self._compute.state.spec
        if spec is None or spec is self._started_with:
            configured = self._compute.settings.installed_extensions_collection_interval
            base = base_seconds(configured) if spec is None else base_at_start(spec, configured)
        else:
            base = base_seconds(spec.spec.suspend_timeout_seconds)
        return interval_seconds(base, self._failures_in_a_row)
