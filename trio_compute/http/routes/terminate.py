"""POST /terminate (contract 03 §5.2, 02 §10.1)."""

from __future__ import annotations

from trio_compute.http.context import Context
from trio_compute.http.front import Answer, Query
from trio_compute.http.problems import Problem, wrong_status
from trio_compute.lifecycle.status import TERMINATION_PENDING, Status
from trio_compute.lifecycle.transitions import IllegalTransition, State
from trio_compute.model.decode import encode
from trio_compute.model.responses import TerminateResponse


async def terminate(context: Context, query: Query) -> Answer:
    """Begin the end, or join one that has begun, and answer when Postgres is gone and the final sync is over."""
    mode = query.get("mode", "fast")
    if mode not in {"fast", "immediate"}:
        raise Problem(400, "failed to deserialize query string: `mode` must be `fast` or `immediate`")
    compute = context.compute
    if compute.state.status is Status.TERMINATED:
        return _answer(compute.state, 201)
    if compute.state.status not in TERMINATION_PENDING:
        try:
            compute.request_termination(immediate=mode == "immediate")
        except IllegalTransition as error:
            raise wrong_status(error.status) from None
    return _answer(await compute.reach(Status.TERMINATED), 200)


def _answer(state: State, code: int) -> Answer:
    if state.termination_error is not None:
        raise Problem(500, state.termination_error)
    lsn = None if state.flush_lsn is None else str(state.flush_lsn)
    return Answer(code, encode(TerminateResponse(lsn=lsn)))
