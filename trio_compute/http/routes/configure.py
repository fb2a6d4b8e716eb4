"""POST /configure (contract 03 §5.1)."""

from __future__ import annotations

from trio_compute.errors import ComputeError, SpecError, cause_chain
from trio_compute.http.context import Context
from trio_compute.http.operation import Answer, Request, ok
from trio_compute.http.problems import Problem, wrong_status
from trio_compute.http.routes.status import status_answer
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.parsed import ParsedSpec, parse_spec
from trio_compute.model.requests import ConfigureRequest
from trio_compute.plan.catalog.wanted import wanted_of
from trio_compute.services.apply_queue import Aborted, Job, Rejected, Succeeded
from trio_compute.services.configure import refuse_another_identity
from trio_compute.services.errands import Ended
from trio_compute.telemetry.redaction import learn_spec


async def configure(context: Context, request: Request) -> Answer:
    """Queue the spec of the body, or join an equal request, and answer with what became of it.

    With `dry_run=true` the answer is what would be done, and nothing is.
    """
    parsed = _parsed(request.body)
    _require_possible(context, parsed)
    if request.query.dry_run:
        return await _preview(context, parsed)
    outcome = await _job(context, parsed, request.headers.get("idempotency-key")).outcome()
    if isinstance(outcome, Aborted):
        raise Ended
    if isinstance(outcome, Rejected):
        raise Problem(500, f"compute configuration failed: {outcome.error}", outcome.failures)
    return status_answer(context.compute)


async def _preview(context: Context, parsed: ParsedSpec) -> Answer:
    compute = context.compute
    if not compute.postgres_running:
        raise wrong_status(compute.state.status)
    refuse_another_identity(compute.state.spec, parsed)
    try:
        return ok(await context.host.preview(parsed, compute.state.spec))
    except SpecError:
        raise
    except ComputeError as error:
        raise Problem(500, f"compute configuration cannot be planned: {cause_chain(error)}") from None


def _job(context: Context, parsed: ParsedSpec, key: str | None) -> Job:
    return _find(context, parsed, key) or _queue(context, parsed, key)


def _parsed(body: ConfigureRequest) -> ParsedSpec:
    parsed = parse_spec(body.spec)
    learn_spec(parsed)
    return parsed


def _require_possible(context: Context, parsed: ParsedSpec) -> None:
    """Raise SpecError for all that can be known before the status changes (C-16)."""
    settings, host = context.compute.settings, context.host
    wanted_of(parsed, privileged_role=settings.privileged_role_name, lakebase=settings.lakebase_mode)
    if context.compute.state.status is Status.EMPTY:
        host.require_startable(parsed)
    else:
        host.render_postgresql_conf(parsed)


def _find(context: Context, parsed: ParsedSpec, key: str | None) -> Job | None:
    """Return the job of an earlier request that this one repeats: by its key, or because it wants the same."""
    known = None if key is None else context.queue.known(key)
    if known is not None and known.spec != parsed:
        raise Problem(422, "the idempotency key was used with another spec")
    if known is not None:
        return known
    compute = context.compute
    is_done = compute.state.spec == parsed and not compute.notices.databases_failed
    if compute.state.status is Status.RUNNING and is_done and compute.ending.value is None:
        job = Job(parsed)
        job.settle(Succeeded())
        return job
    return context.queue.unsettled(parsed)


def _queue(context: Context, parsed: ParsedSpec, key: str | None) -> Job:
    compute, status = context.compute, context.compute.state.status
    if not compute.allows(ev.ApplyQueued) or (status is Status.FAILED and not compute.postgres_running):
        raise wrong_status(status)
    if compute.ending.value is not None:
        raise Ended
    refuse_another_identity(compute.state.spec, parsed)
    compute.apply(ev.ApplyQueued())
    return context.queue.submit(parsed, key=key)
