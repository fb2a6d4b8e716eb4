"""The one owner of a compute's state and of the scope in which it lives."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from msgspec import Struct
from msgspec import to_builtins as builtins_of

from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.cell import Cell
from trio_compute.lifecycle.ending import Ending, Urgency
from trio_compute.lifecycle.events import Event
from trio_compute.lifecycle.feed import Feed
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import TABLE, State, transition
from trio_compute.model.parsed import ParsedSpec
from trio_compute.settings import Settings
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import PHASE_DURATION, metrics
from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.spans import Recorder, Span

HISTORY_LENGTH = 64

log = get_logger("lifecycle")


class Passage(Struct, frozen=True):
    """Record one change of status."""

    at: dt.datetime
    source: Status
    target: Status
    event: str


def _passage_data(passage: Passage, error: str | None) -> dict[str, Any]:
    data = {"from": passage.source.value, "to": passage.target.value, "event": passage.event}
    return data if error is None else {**data, "error": redact(error)}


class DatabaseFailure(Struct, frozen=True):
    """Say what could not be done in or with one database when the catalog was applied last (contract 11 T-08)."""

    database: str
    phase: str
    error: str


class Notices(Struct):
    """Hold what an operator should know beside the status: what waits for a restart, what failed and where."""

    pending_restart: tuple[str, ...] = ()
    migration_error: str | None = None
    activity_error: str | None = None
    databases_failed: tuple[DatabaseFailure, ...] = ()


class Compute:
    """Own the state: the only writer is `apply`, the only end is `end`. It does no I/O and starts no tasks."""

    def __init__(self, settings: Settings, *, spans: Recorder | None = None) -> None:
        self.settings = settings
        self.spans = spans or Recorder()
        self.life = trio.CancelScope()
        self.history: deque[Passage] = deque(maxlen=HISTORY_LENGTH)
        self.urgency = Cell(Urgency.CALM)
        self.ending = Cell[Ending | None](None)
        self.linger_cut = trio.Event()
        self.postgres_running = False
        self.notices = Notices()
        self.feed = Feed()
        self.spans.listen(self._tell_phase)
        self._cell = Cell(State(start_time=dt.datetime.now(dt.UTC)))

    @property
    def state(self) -> State:
        """Return the present state."""
        return self._cell.value

    def apply(self, event: Event) -> State:
        """Follow the table, log, record and wake waiters; raise IllegalTransition and change nothing otherwise."""
        before = self.state
        after = transition(before, event)
        if after.status is not before.status:
            name = type(event).__name__
            self.history.append(Passage(dt.datetime.now(dt.UTC), before.status, after.status, name))
            log.info("status changed", source=before.status.value, target=after.status.value, event=name)
            self.feed.publish("transition", _passage_data(self.history[-1], after.error or after.termination_error))
        self._cell.set(after)
        return after

    def _tell_phase(self, span: Span) -> None:
        """Tell followers that a phase begins or ends, and count how long it took."""
        self.feed.publish("phase", builtins_of(span))
        if span.duration_seconds is not None:
            outcome = "failed" if span.failed else "ok"
            metrics.observe(PHASE_DURATION, span.duration_seconds, phase=span.name, outcome=outcome)

    def allows(self, event: type[Event]) -> bool:
        """Tell whether the table has a row for this kind of event now."""
        return (self.state.status, event) in TABLE

    async def reach(self, *statuses: Status) -> State:
        """Wait until the status is one of these, and return the state that matched even if it moved on since."""
        return await self._cell.wait_for(lambda state: state.status in statuses)

    async def wait_ending(self) -> None:
        """Wait until the compute begins to end."""
        await self.ending.wait_for(lambda ending: ending is not None)

    async def wait_pressed(self) -> None:
        """Wait until a stop signal or its like leaves no patience for anything but Postgres."""
        await self.urgency.wait_for(lambda urgency: urgency >= Urgency.PRESSED)

    async def watch(self, predicate: Callable[[State], bool]) -> State:
        """Wait until the predicate holds for the state; the present one counts, and none that follows is missed."""
        return await self._cell.wait_for(predicate)

    async def until_spec(self, predicate: Callable[[ParsedSpec | None], bool]) -> None:
        """Wait until the predicate holds for the spec; the present one counts, and none that follows is missed."""
        await self._cell.wait_for(lambda state: predicate(state.spec))

    def end(self, ending: Ending, urgency: Urgency = Urgency.CALM) -> None:
        """Begin the end, whatever the phase; the first reason stays, the highest urgency counts."""
        if self.ending.value is None:
            log.info("ending", reason=ending.value)
            self.ending.set(ending)
            self.life.cancel()
        if urgency > self.urgency.value:
            self.urgency.set(urgency)

    def request_termination(self, *, immediate: bool) -> None:
        """Accept `/terminate`; raise IllegalTransition unless the status is empty, running or failed."""
        self.apply(ev.TerminateImmediate() if immediate else ev.TerminateFast())
        if immediate:
            self.linger_cut.set()
        self.end(Ending.TERMINATE_IMMEDIATE if immediate else Ending.TERMINATE_FAST)

    def request_stop(self) -> None:
        """Accept a stop signal; a second one forces the end (contract 02 §10.2)."""
        repeated = self.urgency.value >= Urgency.PRESSED
        if self.allows(ev.Signalled):
            self.apply(ev.Signalled())
        self.linger_cut.set()
        self.end(Ending.SIGNAL, Urgency.FORCED if repeated else Urgency.PRESSED)

    def crash(self, error: str) -> None:
        """Record that a critical task died of a defect; the compute fails and ends."""
        if self.allows(ev.Crashed):
            self.apply(ev.Crashed(error=error))
        self.end(Ending.CRASHED, Urgency.START_FAILED)

    def finish(self, terminated: ev.Terminated) -> None:
        """Record the outcome of the final sync; a compute that was not asked to terminate keeps its status."""
        if self.state.status in TERMINATION_PENDING:
            self.apply(terminated)
