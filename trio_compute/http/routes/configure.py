"""POST /configure (contract 03 §5.1)."""

from __future__ import annotations

from quart import Request, Response

from trio_compute.errors import ComputeError, SpecError, cause_chain
from trio_compute.http.context import Context
from trio_compute.http.problems import CONTENT_TYPE, Problem, unacceptable_body, wrong_status
from trio_compute.http.routes.status import status_body
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.decode import decode, encode
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.requests import ConfigureRequest
from trio_compute.services.apply_queue import Aborted, Job, Rejected, Succeeded
from trio_compute.services.configure import refuse_another_identity
from trio_compute.telemetry.redaction import learn_spec


async def configure(context: Context, request: Request) -> Response:
    """Queue the spec of the body, or join an equal request, and answer with what became of it.

    With `dry_run=true` the answer is what would be done, and nothing is.
    """
    is_dry = _flag(request, "dry_run")
    parsed = _parsed(await _body(request))
    if is_dry:
        return await _preview(context, parsed)
    job = _find(context, parsed, request.headers.get("idempotency-key")) or _queue(context, parsed, request)
    outcome = await job.outcome()
    if isinstance(outcome, Aborted):
        raise Problem(503, "compute is terminating")
    if isinstance(outcome, Rejected):
        raise Problem(500, f"compute configuration failed: {outcome.error}", outcome.failures)
    return Response(status_body(context.compute), content_type=CONTENT_TYPE)


def _flag(request: Request, name: str) -> bool:
    text = request.args.get(name, "false")
    if text not in {"true", "false"}:
        raise Problem(400, f"failed to deserialize query string: `{name}` must be `true` or `false`")
    return text == "true"


async def _preview(context: Context, parsed: ParsedSpec) -> Response:
    compute = context.compute
    if not compute.postgres_running:
        raise wrong_status(compute.state.status)
    try:
        refuse_another_identity(compute.state.spec, parsed)
        preview = await context.host.preview(parsed, compute.state.spec)
    except SpecError as error:
        raise Problem(400, str(error)) from None
    except ComputeError as error:
        raise Problem(500, f"compute configuration cannot be planned: {cause_chain(error)}") from None
    return Response(encode(preview), content_type=CONTENT_TYPE)


async def _body(request: Request) -> ConfigureRequest:
    kind = (request.mimetype or "").lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "expected request with `content-type: application/json`")
    try:
        return decode(await request.get_data(cache=True, as_text=False, parse_form_data=False), ConfigureRequest)
    except SpecError as error:
        raise unacceptable_body(error) from None


def _parsed(body: ConfigureRequest) -> ParsedSpec:
    try:
        parsed = parse_spec(body.spec)
    except SpecError as error:
        raise Problem(400, str(error)) from None
    learn_spec(parsed)
    return parsed


def _find(context: Context, parsed: ParsedSpec, key: str | None) -> Job | None:
    """Return the job of an earlier request that this one repeats: by its key, or because it wants the same."""
    known = None if key is None else context.queue.known(key)
    if known is not None and known.spec != parsed:
        raise Problem(422, "the idempotency key was used with another spec")
    if known is not None:
        return known
    state = context.compute.state
    if state.status is Status.RUNNING and state.spec == parsed and context.compute.ending.value is None:
        job = Job(parsed)
        job.settle(Succeeded())
        return job
    return context.queue.unsettled(parsed)


def _queue(context: Context, parsed: ParsedSpec, request: Request) -> Job:
    compute, status = context.compute, context.compute.state.status
    if not compute.allows(ev.ApplyQueued) or (status is Status.FAILED and not compute.postgres_running):
        raise wrong_status(status)
    if compute.ending.value is not None:
        raise Problem(503, "compute is terminating")
    try:
        refuse_another_identity(compute.state.spec, parsed)
    except SpecError as error:
        raise Problem(400, str(error)) from None
    compute.apply(ev.ApplyQueued())
    return context.queue.submit(parsed, key=request.headers.get("idempotency-key"))
