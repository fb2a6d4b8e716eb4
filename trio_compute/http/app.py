"""The Quart application of the external server: the routes that read bodies or wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Request, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from trio_compute.errors import cause_chain
from trio_compute.http.context import Context
from trio_compute.http.problems import CONTENT_TYPE, Problem
from trio_compute.http.routes.configure import configure
from trio_compute.telemetry.logging import get_logger

BODY_TIMEOUT_SECONDS = 60
# Quart takes this limit when a request arrives, before its handler is known; the largest of all routes.
MAX_BODY_BYTES = 32 * 1024 * 1024

Handler = Callable[[Context, Request], Awaitable[Response]]

log = get_logger("http")


def make_external_app(context: Context) -> QuartTrio:
    """Return the application with its handlers; slow to import, so only ever called from a worker thread."""
    app = QuartTrio("trio_compute", static_folder=None)
    app.config.update(
        RESPONSE_TIMEOUT=None,
        BODY_TIMEOUT=BODY_TIMEOUT_SECONDS,
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.url_map.strict_slashes = False
    app.url_map.redirect_defaults = False
    _add(app, context, "/configure", configure)
    return app


def _add(app: QuartTrio, context: Context, path: str, handler: Handler) -> None:
    async def view() -> Response:
        try:
            return await handler(context, request)
        except Problem as problem:
            return _problem_response(problem)
        except RequestEntityTooLarge:
            return _problem_response(Problem(413, "failed to buffer the request body: length limit exceeded"))
        except HTTPException as error:
            return _problem_response(Problem(error.code or 500, (error.description or error.name).lower()))
        except Exception as error:  # noqa: BLE001  (the one place where a defect of a handler becomes an answer)
            log.error("handler failed", path=path, error=cause_chain(error))
            return _problem_response(Problem(500, "internal error"))

    app.add_url_rule(path, endpoint=path, view_func=view, methods=["POST"])


def _problem_response(problem: Problem) -> Response:
    return Response(problem.log_and_encode(), status=problem.status, content_type=CONTENT_TYPE)
