"""GET /status (contract 03 §4): at once, or when something has happened."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from weakref import WeakKeyDictionary

import trio
from msgspec import UNSET, structs

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem
from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import State
from trio_compute.model.requests import StatusQuery
from trio_compute.model.responses import (
    DatabaseFailureResponse,
    PassageResponse,
    StatusResponse,
    last_active_text,
    start_time_text,
)
from trio_compute.telemetry.redaction import redact

LONGEST_WAIT_SECONDS = 300.0
_DURATION = re.compile(r"\A(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<unit>ms|s|m|)\Z")
_latest: WeakKeyDictionary[Compute, tuple[State, tuple[Any, ...], Answer]] = WeakKeyDictionary()
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0}


async def status(context: Context, request: Request) -> Answer:
    """Answer with the status; with `wait_for` or `since`, once they hold, the compute ended, or the time is over."""
    query: StatusQuery = request.query
    seconds = _seconds(query.timeout)
    if not is_long_poll(query):
        await trio.lowlevel.checkpoint()
    else:
        wanted = _statuses(query.wait_for)
        with trio.move_on_after(seconds):
            await context.compute.watch(lambda state: _is_awaited(state, wanted, query.since))
    return status_answer(context.compute)


def is_long_poll(query: StatusQuery) -> bool:
    """Tell whether the answer may have to wait."""
    return query.wait_for is not None or query.since is not None


def _is_awaited(state: State, wanted: frozenset[Status], since: int | None) -> bool:
    return state.status is Status.TERMINATED or (state.status in wanted and (since is None or state.revision > since))


def _statuses(text: str | None) -> frozenset[Status]:
    if text is None:
        return frozenset(Status)
    try:
        return frozenset(Status(name.strip().replace("-", "_")) for name in text.split(","))
    except ValueError:
        names = ", ".join(status.value for status in Status)
        raise Problem(400, f"failed to deserialize query string: `wait_for`: not a status; there are {names}") from None


def _seconds(text: str) -> float:
    match = _DURATION.match(text)
    seconds = float(match["number"]) * _UNITS[match["unit"]] if match else -1.0
    if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        limit = f"{LONGEST_WAIT_SECONDS:.0f}s"
        raise Problem(400, f"failed to deserialize query string: `timeout`: not a time like `30s`, at most {limit}")
    return seconds


def status_answer(compute: Compute) -> Answer:
    """Return the answer that describes a compute; while nothing happens it is made once."""
    if compute.spans.running is not None:
        return ok(status_response(compute))
    noticed = structs.astuple(compute.notices)
    state, notices, answer = _latest.get(compute) or (None, (), None)
    if answer is None or state is not compute.state or notices != noticed:
        answer = ok(status_response(compute))
        _latest[compute] = (compute.state, noticed, answer)
    return answer


def status_response(compute: Compute) -> StatusResponse:
    """Return what describes a compute, without secrets."""
    state, notices, phase = compute.state, compute.notices, compute.spans.running
    return StatusResponse(
        start_time=start_time_text(state.start_time),
        tenant=state.spec.tenant_id if state.spec else None,
        timeline=state.spec.timeline_id if state.spec else None,
        status=state.status.value,
        last_active=last_active_text(state.last_active) if state.last_active else None,
        error=redact(state.error) if state.error is not None else None,
        revision=state.revision,
        history=[
            PassageResponse(start_time_text(passage.at), passage.source.value, passage.target.value, passage.event)
            for passage in compute.history
        ],
        phase=UNSET if phase is None else phase.name,
        phase_since=UNSET if phase is None else _moment(compute, phase.start_seconds),
        restart_required=state.restart_required or UNSET,
        pending_restart=notices.pending_restart or UNSET,
        migration_error=UNSET if notices.migration_error is None else redact(notices.migration_error),
        activity_error=UNSET if notices.activity_error is None else redact(notices.activity_error),
        databases_failed=[
            DatabaseFailureResponse(failure.database, failure.phase, redact(failure.error))
            for failure in notices.databases_failed
        ]
        or UNSET,
    )


def _moment(compute: Compute, span_seconds: float) -> str:
    ago = dt.timedelta(seconds=compute.spans.now() - span_seconds)
    return start_time_text(dt.datetime.now(dt.UTC) - ago)
