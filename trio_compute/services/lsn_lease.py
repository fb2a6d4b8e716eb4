"""Keep the LSN of a static compute leased, so that pageservers do not collect it (contract 07 §8, D-30)."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Awaitable, Callable

import trio

from trio_compute.errors import SpecError, cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.plan.lease import (
    REFUSED_RETRY_SECONDS,
    LeaseTerms,
    lease_terms,
    renewal_delay_seconds,
    retry_delay_seconds,
)
from trio_compute.telemetry.logging import bound_ids, get_logger
from trio_compute.telemetry.redaction import redact

RequestLease = Callable[[LeaseTerms], Awaitable[float | None]]

# Tests of Neon look for this name and for "Request succeeded".
log = get_logger("lsn_lease_bg_task")


class LeaseState(enum.Enum):
    """Say how the latest request for a lease went."""

    NOT_NEEDED = "not_needed"
    REQUESTED = "requested"
    HELD = "held"
    REFUSED = "refused"
    FAILED = "failed"
    MISCONFIGURED = "misconfigured"


class LsnLease:
    """Hold what is known about the lease, for metrics, and keep it."""

    def __init__(self, compute: Compute, request: RequestLease, *, unix_time: Callable[[], float] = time.time) -> None:
        self._compute = compute
        self._request = request
        self._unix_time = unix_time
        self.state = LeaseState.NOT_NEEDED
        self.requests = dict.fromkeys(LeaseState, 0)
        self.failures_in_a_row = 0
        self.expires_at: float | None = None  # Unix seconds; of the last lease that was granted for these ids
        self.error: str | None = None
        self._ids: dict[str, str] = {}

    async def serve(self) -> None:
        """Keep a lease whenever the spec is static; runs until cancelled."""
        while True:
            await self._compute.until_spec(lambda spec: lease_terms(spec) is not None)
            await self.keep()

    async def keep(self) -> None:
        """Keep the lease that the spec demands, from request to request; return once its mode is not static (S-04)."""
        while (terms := lease_terms(self._compute.state.spec)) is not None:
            await self._keep_until_changed(terms)
        self._become(LeaseState.NOT_NEEDED)
        self.expires_at = None
        log.info("the spec is not static any more")

    async def _keep_until_changed(self, terms: LeaseTerms) -> None:
        ids = {"tenant_id": terms.tenant_id, "timeline_id": terms.timeline_id, "lsn": str(terms.lsn)}
        token = bound_ids.set({**(bound_ids.get() or {}), **ids})
        if ids != self._ids:
            self._ids, self.expires_at = ids, None
        self._become(LeaseState.REQUESTED)
        try:
            with self._compute.spans.trace("lsn_lease_bg_task", encloses=False) as span:
                span.attributes = {**ids}
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_for_ever, terms)
                    await self._compute.until_spec(lambda spec: lease_terms(spec) != terms)
                    nursery.cancel_scope.cancel()
        finally:
            bound_ids.reset(token)

    async def _keep_for_ever(self, terms: LeaseTerms) -> None:
        while True:
            try:
                expires_at = await self._request(terms)
            except SpecError as error:
                delay = self._misconfigured(error)
            except Exception as error:  # noqa: BLE001  (whatever went wrong, a lease must not end in silence)
                delay = self._failed(error)
            else:
                delay = self._refused() if expires_at is None else self._granted(expires_at)
            await trio.sleep(delay)

    def _granted(self, expires_at: float) -> float:
        delay = renewal_delay_seconds(expires_at, self._unix_time())
        self._count(LeaseState.HELD)
        self.expires_at = expires_at
        log.info(f"Request succeeded, sleeping for {delay:.0f} seconds", sleep_seconds=round(delay, 3))
        return delay

    def _refused(self) -> float:
        self._count(LeaseState.REFUSED, "a pageserver refused the lease")
        log.error(
            "lease refused: the data of this LSN may be collected at any time", retry_in_seconds=REFUSED_RETRY_SECONDS
        )
        return REFUSED_RETRY_SECONDS

    def _failed(self, error: Exception) -> float:
        failures = self.failures_in_a_row + 1
        delay = retry_delay_seconds(failures)
        self._count(LeaseState.FAILED, redact(cause_chain(error)))
        self.failures_in_a_row = failures
        # From then on the pageservers may collect what Postgres reads.
        expired = self.expires_at is not None and self.expires_at <= self._unix_time()
        note = log.error if expired else log.warning
        note("lease request failed", error=self.error, failures=failures, retry_in_seconds=round(delay, 3))
        return delay

    def _misconfigured(self, error: SpecError) -> float:
        """Wait for ever: only another spec can help, and that one starts anew (S-05)."""
        self._count(LeaseState.MISCONFIGURED, redact(cause_chain(error)))
        log.error("the spec allows no lease; waiting for another one", error=self.error)
        return math.inf

    def _count(self, state: LeaseState, error: str | None = None) -> None:
        self._become(state, error)
        self.requests[state] += 1

    def _become(self, state: LeaseState, error: str | None = None) -> None:
        self.state, self.error, self.failures_in_a_row = state, error, 0
