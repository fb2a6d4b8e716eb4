"""The Quart application of both servers: it reads bodies, decodes them, and asks the handler (contract 03 §2.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quart import Request as QuartRequest
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from trio_compute.errors import SpecError
from trio_compute.http.context import Context
from trio_compute.http.operation import JSON, Answer, Operation, Request
from trio_compute.http.problems import Problem, body_too_large, problem_of, unacceptable_body
from trio_compute.http.queries import parse_query
from trio_compute.model.decode import decode

BODY_TIMEOUT_SECONDS = 60


def make_app(operations: Iterable[Operation], context: Context) -> QuartTrio:
    """Return the application with its handlers; slow to import, so only ever called from a worker thread."""
    kept = [operation for operation in operations if operation.body is not None]
    app = QuartTrio("trio_compute", static_folder=None)
    app.config.update(
        RESPONSE_TIMEOUT=None,
        BODY_TIMEOUT=BODY_TIMEOUT_SECONDS,
        # Quart takes it when a request arrives, before its handler is known; `_body` holds that of the route.
        MAX_CONTENT_LENGTH=max(operation.max_body_bytes for operation in kept),
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.url_map.strict_slashes = False
    app.url_map.redirect_defaults = False
    for operation in kept:
        _add(app, operation, context)
    return app


def _add(app: QuartTrio, operation: Operation, context: Context) -> None:
    async def view() -> Response:
        try:
            answer = await operation.handler(context, await _decoded(request, operation))
            assert isinstance(answer, Answer), "no route that reads a body streams its answer"
            return Response(answer.body, status=answer.status, content_type=answer.content_type)
        except RequestEntityTooLarge:
            return _problem_response(body_too_large())
        except HTTPException as error:
            return _problem_response(Problem(error.code or 500, (error.description or error.name).lower()))
        except Exception as error:  # noqa: BLE001  (what becomes of errors is decided in `problem_of` alone)
            return _problem_response(problem_of(error, operation.path))

    app.add_url_rule(operation.path, endpoint=operation.path, view_func=view, methods=[operation.method])


async def _decoded(received: QuartRequest, operation: Operation) -> Request:
    headers = {name.lower(): value for name, value in received.headers.items()}
    query = parse_query(received.query_string, operation.query)
    return Request(query=query, body=await _body(received, operation), headers=headers)


async def _body(received: QuartRequest, operation: Operation) -> Any:
    kind = (received.mimetype or "").lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, f"expected request with `content-type: {JSON}`")
    data = await received.get_data(cache=True, as_text=False, parse_form_data=False)
    if len(data) > operation.max_body_bytes:
        raise body_too_large()
    try:
        return decode(data, operation.body)
    except SpecError as error:
        raise unacceptable_body(error) from None


def _problem_response(problem: Problem) -> Response:
    return Response(problem.log_and_encode(), status=problem.status, content_type=JSON)
