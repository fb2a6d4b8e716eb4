"""POST /configure (contract 03 §5.1)."""

from __future__ import annotations

from quart import Request, Response

from trio_compute.errors import SpecError
from trio_compute.http.context import Context
from trio_compute.http.problems import CONTENT_TYPE, Problem, unacceptable_body, wrong_status
from trio_compute.http.routes.status import status_body
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.decode import decode
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.requests import ConfigureRequest
from trio_compute.services.apply_queue import Aborted, Job, Rejected
from trio_compute.telemetry.redaction import learn_spec


async def configure(context: Context, request: Request) -> Response:
    """Queue the spec of the body and answer with what became of it."""
    job = _queue(context, await _body(request))
    outcome = await job.outcome()
    if isinstance(outcome, Aborted):
        raise Problem(503, "compute is terminating")
    if isinstance(outcome, Rejected):
        raise Problem(500, f"compute configuration failed: {outcome.error}")
    return Response(status_body(context.compute.state), content_type=CONTENT_TYPE)


async def _body(request: Request) -> ConfigureRequest:
    kind = (request.mimetype or "").lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "expected request with `content-type: application/json`")
    try:
        return decode(await request.get_data(cache=True, as_text=False, parse_form_data=False), ConfigureRequest)
    except SpecError as error:
        raise unacceptable_body(error) from None


def _queue(context: Context, body: ConfigureRequest) -> Job:
    compute = context.compute
    try:
        parsed = parse_spec(body.spec)
    except SpecError as error:
        raise Problem(400, str(error)) from None
    learn_spec(parsed)
    status = compute.state.status
    if not compute.allows(ev.ApplyQueued) or (status is Status.FAILED and not compute.postgres_running):
        raise wrong_status(status)
    if compute.ending.value is not None:
        raise Problem(503, "compute is terminating")
    _refuse_another_identity(context, parsed)
    compute.apply(ev.ApplyQueued())
    return context.queue.submit(parsed)


def _refuse_another_identity(context: Context, parsed: ParsedSpec) -> None:
    """Refuse a spec that would turn a running compute into another one (D-47)."""
    current = context.compute.state.spec
    for field in ("tenant_id", "timeline_id", "mode"):
        if current is not None and getattr(current, field) != getattr(parsed, field):
            raise Problem(400, f"cannot change {field} of a running compute")
