"""The state machine: a table, and one pure function that follows it (contract 02 §2)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, structs

from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.events import Event
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.model.ids import Lsn
from trio_compute.model.parsed import ParsedSpec

S = Status
_TERMINABLE = (S.EMPTY, S.RUNNING, S.FAILED)
_ALIVE = tuple(status for status in Status if status not in TERMINATION_PENDING and status is not S.TERMINATED)
_REFRESHABLE = (S.RUNNING, S.FAILED, S.REFRESH_CONFIGURATION_PENDING)

# A promotion runs in one of the first; the others may come while it does.
_PROMOTABLE = (S.RUNNING, S.CONFIGURATION_PENDING, S.REFRESH_CONFIGURATION_PENDING, *TERMINATION_PENDING)

TABLE: Mapping[tuple[Status, type[Event]], Status] = {
    (S.EMPTY, ev.SpecKnown): S.INIT,
    (S.EMPTY, ev.ApplyQueued): S.CONFIGURATION_PENDING,
    (S.CONFIGURATION_PENDING, ev.StartBegan): S.INIT,
    (S.INIT, ev.Started): S.RUNNING,
    (S.INIT, ev.StartFailed): S.FAILED,
    (S.RUNNING, ev.ApplyQueued): S.CONFIGURATION_PENDING,
    (S.FAILED, ev.ApplyQueued): S.CONFIGURATION_PENDING,
    (S.CONFIGURATION_PENDING, ev.ApplyBegan): S.CONFIGURATION,
    (S.CONFIGURATION, ev.Applied): S.RUNNING,
    (S.CONFIGURATION, ev.ApplyFailed): S.FAILED,
    **{(status, ev.RefreshRequested): S.REFRESH_CONFIGURATION_PENDING for status in _REFRESHABLE},
    (S.INIT, ev.RefreshRequested): S.INIT,
    (S.REFRESH_CONFIGURATION_PENDING, ev.RefreshBegan): S.REFRESH_CONFIGURATION,
    (S.REFRESH_CONFIGURATION, ev.RefreshUnchanged): S.RUNNING,
    (S.REFRESH_CONFIGURATION, ev.Refreshed): S.RUNNING,
    (S.REFRESH_CONFIGURATION, ev.RefreshFailed): S.REFRESH_CONFIGURATION_PENDING,
    **{(status, ev.TerminateFast): S.TERMINATION_PENDING_FAST for status in _TERMINABLE},
    **{(status, ev.TerminateImmediate): S.TERMINATION_PENDING_IMMEDIATE for status in _TERMINABLE},
    **{(status, ev.Signalled): S.TERMINATION_PENDING_IMMEDIATE for status in _ALIVE},
    **{(status, ev.Crashed): S.FAILED for status in _ALIVE},
    **{(status, ev.Terminated): S.TERMINATED for status in TERMINATION_PENDING},
    **{(status, ev.Promoted): status for status in _PROMOTABLE},
    **{(status, ev.Active): status for status in _ALIVE if status not in {S.EMPTY, S.INIT}},
}


class State(Struct, frozen=True, kw_only=True):
    """Hold everything that readers may ask about a compute; replaced as a whole, never changed in place."""

    status: Status = Status.EMPTY
    # Rises by one with each change of status, so that a reader can wait for the next one.
    revision: int = 0
    start_time: dt.datetime
    error: str | None = None
    spec: ParsedSpec | None = None
    restart_required: tuple[str, ...] = ()
    last_active: dt.datetime | None = None
    flush_lsn: Lsn | None = None
    termination_error: str | None = None


class IllegalTransition(Exception):
    """Report an event that the table does not allow in a status."""

    def __init__(self, status: Status, event: Event) -> None:
        super().__init__(f"{type(event).__name__} is not allowed in status {status.kebab}")
        self.status = status


def transition(state: State, event: Event) -> State:
    """Return the state after `event`; raise IllegalTransition when the table has no such row."""
    status = TABLE.get((state.status, type(event)))
    if status is None:
        raise IllegalTransition(state.status, event)
    revision = state.revision + (status is not state.status)
    return structs.replace(state, status=status, revision=revision, **_remembered(state, event))


def _remembered(state: State, event: Event) -> dict[str, Any]:
    match event:
        case ev.SpecKnown(spec=spec, at=at) | ev.StartBegan(spec=spec, at=at):
            return {"spec": spec, "start_time": at}
        case ev.Applied(spec=spec, restart_required=fields) | ev.Refreshed(spec=spec, restart_required=fields):
            return {"spec": spec, "restart_required": fields, "error": None}
        case ev.Promoted(spec=spec, restart_required=fields):
            return {"spec": spec, "restart_required": fields}
        case ev.Started() | ev.RefreshUnchanged():
            return {"error": None}
        case (
            ev.StartFailed(error=error)
            | ev.ApplyFailed(error=error)
            | ev.RefreshFailed(error=error)
            | ev.Crashed(error=error)
        ):
            return {"error": error}
        case ev.Terminated(flush_lsn=lsn, error=error):
            return {"flush_lsn": lsn, "termination_error": error}
        case ev.Active(at=at):
            return {"last_active": at if state.last_active is None else max(at, state.last_active)}
        case _:
            return {}
