"""Fill the local file cache from its stored state, and store that state (contract 08 §2 … §5).

A request only begins the work, which runs as an errand of the compute: it goes on though the client leaves, and ends
with the compute. However it ends, there is a final state (L-02).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from msgspec import to_builtins

from trio_compute.errors import ComputeError, PostgresError, RemoteError, StorageError, cause_chain
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.lfc import (
    NotOffloaded,
    NotPrewarmed,
    OffloadCompleted,
    OffloadFailed,
    Offloading,
    OffloadSkipped,
    OffloadState,
    PrewarmCancelled,
    PrewarmCompleted,
    PrewarmFailed,
    PrewarmInfo,
    Prewarming,
    PrewarmSkipped,
    PrewarmState,
    progress,
)
from trio_compute.model.parsed import ParsedSpec
from trio_compute.ports import Host
from trio_compute.services.errands import Ended, Errands
from trio_compute.services.supervise import run_unless
from trio_compute.storage.endpoint_storage import StateLocation, locate_state
from trio_compute.telemetry import metrics as names
from trio_compute.telemetry.failpoints import failpoints
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import metrics
from trio_compute.telemetry.redaction import redact

if TYPE_CHECKING:
    from trio_compute.db.cache import CacheSession

FAILPOINT = "compute-prewarm"
CANCEL_SECONDS = 10.0
CANCEL_RETRY_SECONDS = 2.0
PROGRESS_SECONDS = 0.25
# What ends without a result of its own was cut short by the end of the compute (L-05, L-08).
CUT_SHORT = "cancelled"

log = get_logger("lfc")


class Cancellation:
    """Carry the wish to cancel one prewarm, and no other (L-03)."""

    def __init__(self) -> None:
        self.wanted = trio.Event()
        # Around the steps that can be dropped at any moment.
        self.droppable = trio.CancelScope()

    def request(self) -> None:
        """Cancel that prewarm."""
        self.wanted.set()
        self.droppable.cancel()

    @property
    def requested(self) -> bool:
        """Tell whether somebody wants it cancelled."""
        return self.wanted.is_set()


class Lfc:
    """Own the states of the cache and the work that changes them."""

    def __init__(self, compute: Compute, host: Host, errands: Errands) -> None:
        self._compute = compute
        self._host = host
        self._errands = errands
        self._cancellation: Cancellation | None = None
        self.prewarm_state: PrewarmState = NotPrewarmed()
        self._offload_states = Cell[OffloadState](NotOffloaded())

    @property
    def offload_state(self) -> OffloadState:
        """Return the state of the latest offload."""
        return self._offload_states.value

    @property
    def prewarming(self) -> bool:
        """Tell whether a prewarm runs."""
        return self._cancellation is not None

    @property
    def offloading(self) -> bool:
        """Tell whether an offload runs."""
        return isinstance(self.offload_state, Offloading)

    def begin_prewarm(self, from_endpoint: str | None = None) -> bool:
        """Begin a prewarm, from the state of another endpoint if one is named; return False while one runs.

        Raises Ended if the compute is about to end.
        """
        if self.prewarming:
            return False
        cancellation = Cancellation()
        self._errands.begin(partial(self._prewarm, cancellation, self._spec(), from_endpoint))
        self._cancellation = cancellation
        metrics.increment(names.LFC_PREWARMS)
        self._tell_prewarm(Prewarming())
        return True

    def cancel_prewarm(self) -> None:
        """Cancel the prewarm that runs, if one does."""
        if self._cancellation is not None:
            self._cancellation.request()

    def begin_offload(self) -> bool:
        """Begin to store the cache's state; return False while that, or a prewarm, runs (L-06). Raises Ended."""
        if self.offloading or self.prewarming:
            return False
        self._errands.begin(partial(self._offload, self._spec()))
        metrics.increment(names.LFC_OFFLOADS)
        self._tell_offload(Offloading())
        return True

    async def serve(self) -> None:
        """Prewarm once if the spec says so, then store the state at the interval that the present spec says (L-07)."""
        try:
            if self._spec().spec.autoprewarm:
                self.begin_prewarm()
            while True:
                interval = _interval(self._compute.state.spec)
                changed = partial(self._compute.until_spec, partial(_has_another_interval, interval))
                await run_unless(changed, partial(self._offload_every, interval))
        except Ended:
            return

    # Prewarm

    async def _prewarm(self, cancellation: Cancellation, parsed: ParsedSpec, from_endpoint: str | None) -> None:
        outcome: PrewarmState = PrewarmFailed(CUT_SHORT)
        try:
            with self._compute.spans.measure("lfc.prewarm"):
                outcome = await self._prewarmed(cancellation, parsed, from_endpoint)
        except Exception as error:  # noqa: BLE001  (L-02: whatever it was, the next prewarm must be possible)
            outcome = PrewarmFailed(redact(cause_chain(error)))
        finally:
            self._cancellation = None
            if isinstance(outcome, PrewarmFailed):
                metrics.increment(names.LFC_PREWARM_ERRORS)
                log.error("prewarm failed", error=outcome.error)
            self._tell_prewarm(outcome)

    async def _prewarmed(
        self, cancellation: Cancellation, parsed: ParsedSpec, from_endpoint: str | None
    ) -> PrewarmState:
        location = locate_state(parsed, from_endpoint)
        if failpoints.returns(FAILPOINT) is not None:
            raise RemoteError(f"{FAILPOINT} failpoint")
        state: bytes | None = None
        with cancellation.droppable:
            state = await self._download(location)
        if cancellation.requested:
            return PrewarmCancelled()
        if state is None:
            return PrewarmSkipped()
        info = await self._load(cancellation, state)
        if info is None:
            return PrewarmCancelled()
        return PrewarmCompleted(
            total=info.total or 0,
            prewarmed=info.prewarmed or 0,
            skipped=info.skipped or 0,
            state_download_time_ms=self._milliseconds("lfc.prewarm.state_download"),
            uncompress_time_ms=self._milliseconds("lfc.prewarm.uncompress"),
            prewarm_time_ms=self._milliseconds("lfc.prewarm.prewarm"),
        )

    async def _download(self, location: StateLocation) -> bytes | None:
        spans, storage = self._compute.spans, self._host.endpoint_storage
        async with AsyncExitStack() as stack:
            with spans.measure("lfc.prewarm.state_download"):
                download = await stack.enter_async_context(storage.open_state(location))
            if download is None:
                return None
            # The field that this span feeds has always held both (L-09).
            with spans.measure("lfc.prewarm.uncompress"):
                with spans.measure("lfc.prewarm.download_body"):
                    frame = await download.body()
                with spans.measure("lfc.prewarm.decompress"), _while("decoding LFC state", StorageError):
                    return await storage.unpack(frame)

    async def _load(self, cancellation: Cancellation, state: bytes) -> PrewarmInfo | None:
        """Hand the state to Postgres; return what came of it, None if it was cancelled."""
        spans = self._compute.spans
        async with AsyncExitStack() as stack:
            with spans.measure("lfc.prewarm.prewarm"):
                with spans.measure("lfc.prewarm.connect"), _while("connecting to postgres"):
                    session = await stack.enter_async_context(self._host.open_cache_session("apply_config"))
                if not cancellation.requested:
                    with spans.measure("lfc.prewarm.load"):
                        await self._load_until_cancelled(cancellation, session, state)
            if cancellation.requested:
                return None
            with spans.measure("lfc.prewarm.info"), _while("querying prewarm info"):
                info = await session.info()
            log.info("prewarm info", **to_builtins(info))
            return info

    async def _load_until_cancelled(self, cancellation: Cancellation, session: CacheSession, state: bytes) -> None:
        refusals: list[PostgresError] = []

        async def load() -> bool:
            with _while("loading LFC state into postgres"):
                return await session.load(state)

        async def stop() -> None:
            await cancellation.wanted.wait()
            try:
                with _while("cancelling neon.prewarm_local_cache()"):
                    await _stop(session)
            except PostgresError as error:
                refusals.append(error)

        loaded = await run_unless(self._watch, partial(run_unless, stop, load))
        if refusals:
            raise refusals[0]
        if loaded is None:
            log.warning("Postgres goes on with the prewarm that was cancelled", waited_seconds=CANCEL_SECONDS)
        elif not loaded and not cancellation.requested:
            raise PostgresError("loading LFC state into postgres") from PostgresError("somebody else cancelled it")

    async def _watch(self) -> None:
        """Show how far the prewarm is, if Postgres tells; for as long as it is let."""
        began = trio.current_time()
        try:
            await trio.sleep(PROGRESS_SECONDS)
            async with self._host.open_cache_session("prewarm_progress") as session:
                while True:
                    state = progress(await session.info(), trio.current_time() - began)
                    if state is not None:
                        self._tell_prewarm(state)
                    await trio.sleep(PROGRESS_SECONDS)
        except ComputeError as error:
            log.warning("the progress of the prewarm cannot be shown", error=cause_chain(error))
        await trio.sleep_forever()

    # Offload

    async def _offload_every(self, seconds: int | None) -> None:
        due = trio.current_time()
        while seconds is not None:
            # Counted from the time that was due: late ones are made up for.
            due += seconds
            await trio.sleep_until(due)
            # A cache that was not filled must not replace a good state; one that was cancelled may (L-13).
            if not isinstance(self.prewarm_state, PrewarmFailed) and self.begin_offload():
                await self._offload_states.wait_for(lambda state: not isinstance(state, Offloading))
        await trio.sleep_forever()

    async def _offload(self, parsed: ParsedSpec) -> None:
        outcome: OffloadState = OffloadFailed(CUT_SHORT)
        try:
            with self._compute.spans.measure("lfc.offload"):
                outcome = await self._offloaded(parsed)
        except Exception as error:  # noqa: BLE001  (L-02: whatever it was, the next offload must be possible)
            outcome = OffloadFailed(redact(cause_chain(error)))
        finally:
            if isinstance(outcome, OffloadFailed):
                metrics.increment(names.LFC_OFFLOAD_ERRORS)
                log.error("offload failed", error=outcome.error)
            self._tell_offload(outcome)

    async def _offloaded(self, parsed: ParsedSpec) -> OffloadState:
        spans, storage = self._compute.spans, self._host.endpoint_storage
        location = locate_state(parsed)
        with spans.measure("lfc.offload.state_query") as query:
            state = await self._saved_state()
        if state is None:
            return OffloadSkipped()
        with spans.measure("lfc.offload.compress") as compress, _while("compressing LFC state", StorageError):
            frame = await storage.pack(state)
        with spans.measure("lfc.offload.state_upload") as upload:
            await storage.put_state(location, frame)
        return OffloadCompleted(
            state_query_time_ms=query.milliseconds,
            compress_time_ms=compress.milliseconds,
            state_upload_time_ms=upload.milliseconds,
        )

    async def _saved_state(self) -> bytes | None:
        spans = self._compute.spans
        async with AsyncExitStack() as stack:
            with spans.measure("lfc.offload.connect"), _while("connecting to postgres"):
                session = await stack.enter_async_context(self._host.open_cache_session("apply_config"))
            with spans.measure("lfc.offload.query"):
                return await session.state()

    # Both

    def _spec(self) -> ParsedSpec:
        parsed = self._compute.state.spec
        assert parsed is not None, "only a compute that runs is asked for this"
        return parsed

    def _milliseconds(self, name: str) -> int:
        span = self._compute.spans.last(name)
        return 0 if span is None else span.milliseconds

    def _tell_prewarm(self, state: PrewarmState) -> None:
        self.prewarm_state = state
        self._compute.feed.publish("prewarm", to_builtins(state))

    def _tell_offload(self, state: OffloadState) -> None:
        self._offload_states.set(state)
        self._compute.feed.publish("offload", to_builtins(state))


def _interval(parsed: ParsedSpec | None) -> int | None:
    return None if parsed is None else parsed.spec.offload_lfc_interval_seconds


def _has_another_interval(old: int | None, parsed: ParsedSpec | None) -> bool:
    return _interval(parsed) != old


@contextmanager
def _while(what: str, kind: type[ComputeError] = PostgresError) -> Iterator[None]:
    """Say in an error what was being done."""
    try:
        yield
    except ComputeError as error:
        raise kind(what) from error


async def _stop(session: CacheSession) -> None:
    """Ask the server to cancel, and wait until it has, for a limited time.

    A request that overtakes its query has no effect; but one too many could disturb the function while it stops its
    workers, so they are far between.
    """
    with trio.move_on_after(CANCEL_SECONDS):
        while True:
            await session.cancel()
            await trio.sleep(CANCEL_RETRY_SECONDS)
