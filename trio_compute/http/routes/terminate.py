"""POST /terminate (contract 03 §5.2, 02 §10.1)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import State
from trio_compute.model.requests import TerminateQuery
from trio_compute.model.responses import TerminateResponse
from trio_compute.services.idle_end import IdlenessUnknown, end_if_idle


async def terminate(context: Context, request: Request) -> Answer:
    """Begin the end, or join one that has begun, and answer when Postgres is gone and the final sync is over."""
    compute, query = context.compute, request.query
    if compute.state.status is Status.TERMINATED:
        return _answer(compute.state, 201)
    if compute.state.status not in TERMINATION_PENDING:
        await _begin(context, query)
    return _answer(await compute.reach(Status.TERMINATED), 200)


async def _begin(context: Context, query: TerminateQuery) -> None:
    immediate = query.mode == "immediate"
    if not query.if_idle:
        context.compute.request_termination(immediate=immediate)
        return
    try:
        active = await end_if_idle(context, immediate=immediate)
    except IdlenessUnknown as error:
        raise Problem(503, str(error)) from None
    if active:
        raise Problem(409, f"compute is not idle: {active} active session{'s' if active > 1 else ''}")


def _answer(state: State, code: int) -> Answer:
    if state.termination_error is not None:
        raise Problem(500, state.termination_error)
    return ok(TerminateResponse(lsn=None if state.flush_lsn is None else str(state.flush_lsn)), code)
