"""Every route of both servers: the front finds its way by this table, and openapi.json is made from it."""

from __future__ import annotations

from typing import Any

from trio_compute.http.operation import MEBIBYTE, Operation, Reply, always
from trio_compute.http.routes.autoscaling_metrics import autoscaling_metrics
from trio_compute.http.routes.check_writability import check_writability
from trio_compute.http.routes.configure import configure
from trio_compute.http.routes.database_schema import CONTENT_TYPE as SQL_TEXT
from trio_compute.http.routes.database_schema import database_schema
from trio_compute.http.routes.dbs_and_roles import dbs_and_roles
from trio_compute.http.routes.events import CONTENT_TYPE as EVENT_STREAM
from trio_compute.http.routes.events import events
from trio_compute.http.routes.extension_server import extension_server
from trio_compute.http.routes.extensions import extensions
from trio_compute.http.routes.failpoints import failpoints
from trio_compute.http.routes.grants import grants
from trio_compute.http.routes.hadron_liveness_probe import hadron_liveness_probe
from trio_compute.http.routes.health import livez, readyz, startupz
from trio_compute.http.routes.insights import insights
from trio_compute.http.routes.lfc_offload import begin_offload, offload_state
from trio_compute.http.routes.lfc_prewarm import begin_prewarm, cancel_prewarm, prewarm_state
from trio_compute.http.routes.openapi import openapi
from trio_compute.http.routes.page import CONTENT_TYPE as HTML
from trio_compute.http.routes.page import page
from trio_compute.http.routes.promote import promote
from trio_compute.http.routes.reads import metrics_json, metrics_text, spans
from trio_compute.http.routes.refresh_configuration import refresh_configuration
from trio_compute.http.routes.status import is_long_poll, status
from trio_compute.http.routes.terminate import terminate
from trio_compute.model import requests as asked
from trio_compute.model import responses as told
from trio_compute.model.lfc import OffloadState, PrewarmState
from trio_compute.model.promotion import PromoteCompleted, PromoteFailed
from trio_compute.plan.preview import Preview
from trio_compute.telemetry.spans import Span

SPEC_BODY_BYTES = 32 * MEBIBYTE
PROMETHEUS = "text/plain; version=0.0.4"


def _error(description: str) -> Reply:
    return Reply(told.ErrorResponse, description)


WRONG_STATUS = _error("The status of the compute does not allow it.")
NO_POSTGRES = _error("Postgres does not run, or is being ended.")
TERMINATING = _error("The compute is terminating.")
BAD_QUERY = _error("A parameter is missing or cannot be understood.")
BUSY = _error("One that was begun earlier still runs.")
INTERNAL = _error("It failed; the text says how.")
TIMED_OUT = _error("Postgres did not do it in time.")
SQL_PROBLEMS = {412: NO_POSTGRES, 500: INTERNAL, 503: TERMINATING, 504: TIMED_OUT}
NOT_FOUND = _error("An object that was named does not exist.")
BODY_PROBLEMS = {
    400: _error("The body is not JSON, or what it says is not acceptable."),
    413: _error("The body is too large."),
    415: _error("The content type is not JSON."),
    422: _error("The JSON has another shape."),
}


def _probe(path: str, handler: Any, summary: str) -> Operation:
    replies = {200: Reply(told.HealthResponse, "Yes."), 503: Reply(told.HealthResponse, "No; the reason says why.")}
    return Operation(method="GET", path=path, handler=handler, summary=summary, replies=replies, needs_token=False)


CACHE_AND_PROMOTION: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/lfc/prewarm",
        handler=prewarm_state,
        summary="Tell the state of the latest prewarm of the local file cache.",
        replies={200: Reply(PrewarmState, "The state; while it runs also how far it is.")},
    ),
    Operation(
        method="POST",
        path="/lfc/prewarm",
        handler=begin_prewarm,
        summary="Begin to fill the local file cache from a stored list of pages.",
        query=asked.PrewarmQuery,
        replies={202: Reply(None, "It has begun."), 400: BAD_QUERY, 412: NO_POSTGRES, 429: BUSY, 503: TERMINATING},
    ),
    Operation(
        method="DELETE",
        path="/lfc/prewarm",
        handler=cancel_prewarm,
        summary="Cancel the prewarm that runs.",
        replies={202: Reply(None, "It will end soon, or none runs.")},
    ),
    Operation(
        method="GET",
        path="/lfc/offload",
        handler=offload_state,
        summary="Tell the state of the latest offload of the local file cache.",
        replies={200: Reply(OffloadState, "The state.")},
    ),
    Operation(
        method="POST",
        path="/lfc/offload",
        handler=begin_offload,
        summary="Begin to store the list of cached pages.",
        replies={202: Reply(None, "It has begun."), 412: NO_POSTGRES, 429: BUSY, 503: TERMINATING},
    ),
    Operation(
        method="POST",
        path="/promote",
        handler=promote,
        summary="Make this replica the primary.",
        body=asked.PromoteRequest,
        replies={
            200: Reply(PromoteCompleted, "This compute is the primary."),
            **BODY_PROBLEMS,
            412: WRONG_STATUS,
            500: Reply(PromoteFailed, "It is not; another call tries again."),
            503: TERMINATING,
        },
        max_body_bytes=SPEC_BODY_BYTES,
    ),
)


def _spans(*, needs_token: bool) -> Operation:
    return Operation(
        method="GET",
        path="/spans",
        handler=spans,
        summary="Tell the measured phases, for people who look at a start-up.",
        replies={200: Reply(list[Span], "The phases in the order in which they began.")},
        needs_token=needs_token,
    )


OPENAPI = Operation(
    method="GET",
    path="/openapi.json",
    handler=openapi,
    summary="Tell what this API is: the document that you are looking at.",
    replies={200: Reply(dict[str, Any], "An OpenAPI 3.1 description of both servers.")},
    needs_token=False,
)

EXTERNAL: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/",
        handler=page,
        summary="Show the status page, which asks for a token itself.",
        replies={200: Reply(str, "The page.", HTML)},
        needs_token=False,
    ),
    Operation(
        method="GET",
        path="/status",
        handler=status,
        summary="Tell the status, at once or when something has happened.",
        query=asked.StatusQuery,
        replies={200: Reply(told.StatusResponse, "The status."), 400: BAD_QUERY},
        waits=is_long_poll,
    ),
    Operation(
        method="GET",
        path="/metrics",
        handler=metrics_text,
        summary="Tell all metrics in Prometheus' text format.",
        replies={200: Reply(str, "The metrics.", PROMETHEUS)},
        needs_token=False,
    ),
    Operation(
        method="GET",
        path="/metrics.json",
        handler=metrics_json,
        summary="Tell how long the steps of the start took.",
        replies={200: Reply(told.MetricsResponse, "Thirteen numbers, 0 until measured.")},
    ),
    Operation(
        method="GET",
        path="/events",
        handler=events,
        summary="Tell what happens as it happens: transitions, phases, progress.",
        query=asked.EventsQuery,
        headers={"last-event-id": "The `id` of the last event seen, as browsers send it; stronger than `after`."},
        replies={200: Reply(str, "Server-sent events.", EVENT_STREAM), 400: BAD_QUERY},
        waits=always,
    ),
    Operation(
        method="POST",
        path="/configure",
        handler=configure,
        summary="Bring the compute to what a spec wants, or tell what that would do.",
        query=asked.ConfigureQuery,
        headers={"idempotency-key": "Any text; a repeated request finds the result of the first, a failure too."},
        body=asked.ConfigureRequest,
        replies={
            200: Reply(told.StatusResponse | Preview, "The spec is in force; with `dry_run`: what would be done."),
            **BODY_PROBLEMS,
            412: WRONG_STATUS,
            500: _error("The spec could not be applied; `failures` names the objects at fault."),
            503: TERMINATING,
        },
        max_body_bytes=SPEC_BODY_BYTES,
    ),
    Operation(
        method="POST",
        path="/terminate",
        handler=terminate,
        summary="End the compute and tell up to which LSN its commits are safe.",
        query=asked.TerminateQuery,
        replies={
            200: Reply(told.TerminateResponse, "Postgres is gone and the safekeepers are synced."),
            201: Reply(told.TerminateResponse, "That was so before."),
            400: BAD_QUERY,
            409: _error("`if_idle` was set and somebody is working."),
            412: WRONG_STATUS,
            500: _error("The final sync of the safekeepers failed."),
            503: _error("`if_idle` was set and Postgres cannot be asked."),
        },
        waits=always,
    ),
    Operation(
        method="POST",
        path="/check_writability",
        handler=check_writability,
        summary="Try whether Postgres can write.",
        replies={200: Reply(bool, "It can, or only the disk or a quota is full."), **SQL_PROBLEMS},
        waits=always,
    ),
    Operation(
        method="GET",
        path="/database_schema",
        handler=database_schema,
        summary="Tell the definitions of a database as SQL, as pg_dump writes them.",
        query=asked.SchemaQuery,
        replies={
            200: Reply(str, "The definitions; broken off if pg_dump fails in the middle, or takes too long.", SQL_TEXT),
            400: BAD_QUERY,
            404: _error("There is no such database."),
            **SQL_PROBLEMS,
        },
        waits=always,
    ),
    Operation(
        method="GET",
        path="/dbs_and_roles",
        handler=dbs_and_roles,
        summary="List all databases and roles.",
        replies={200: Reply(told.CatalogResponse, "They are listed by name."), **SQL_PROBLEMS},
        waits=always,
    ),
    Operation(
        method="GET",
        path="/hadron_liveness_probe",
        handler=hadron_liveness_probe,
        summary="Tell whether Postgres accepts connections, as pg_isready sees it.",
        replies={200: Reply(str, "It does."), 500: _error("It does not, or cannot be asked.")},
        waits=always,
    ),
    Operation(
        method="GET",
        path="/insights",
        handler=insights,
        summary="Tell which statements take longest.",
        replies={200: Reply(told.InsightsResponse, "At most 100 statements, the slowest first."), **SQL_PROBLEMS},
        waits=always,
    ),
    Operation(
        method="GET",
        path="/autoscaling_metrics",
        handler=autoscaling_metrics,
        summary="Pass on the metrics that Postgres itself serves.",
        replies={
            200: Reply(str, "Whatever Postgres answers, with its status and content type.", PROMETHEUS),
            500: _error("Postgres cannot be reached."),
        },
        needs_token=False,
        waits=always,
    ),
    *CACHE_AND_PROMOTION,
    _spans(needs_token=True),
    _probe("/livez", livez, "Tell whether this process works."),
    _probe("/readyz", readyz, "Tell whether Postgres takes connections."),
    _probe("/startupz", startupz, "Tell whether the start is over."),
    OPENAPI,
)

INTERNAL_ONLY: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/extension_server/",
        handler=extension_server,
        summary="Download and install an extension, or the one that brings a library.",
        query=asked.ExtensionQuery,
        replies={
            200: Reply(None, "It is installed."),
            400: BAD_QUERY,
            404: _error("The spec does not know it or does not allow it."),
            409: _error("There is no spec, or it says nothing about extensions."),
            412: _error("There is no gateway to download from."),
            500: _error("It could not be downloaded or installed."),
            503: TERMINATING,
        },
        needs_token=False,
        has_rest=True,
        waits=always,
    ),
    Operation(
        method="POST",
        path="/refresh_configuration",
        handler=refresh_configuration,
        summary="Fetch the configuration again.",
        replies={200: Reply(None, "It will be fetched."), 500: _error("The status does not allow it.")},
        needs_token=False,
    ),
    Operation(
        method="POST",
        path="/extensions",
        handler=extensions,
        summary="Install an extension, or bring it to another version.",
        body=asked.ExtensionRequest,
        replies={
            201: Reply(told.ExtensionResponse, "It is installed at that version."),
            **BODY_PROBLEMS,
            404: NOT_FOUND,
            409: _error("The catalog does not allow it: the text has the reason, and what is in the way."),
            **SQL_PROBLEMS,
        },
        needs_token=False,
    ),
    Operation(
        method="POST",
        path="/grants",
        handler=grants,
        summary="Grant what a role lacks on a schema.",
        body=asked.GrantsRequest,
        replies={
            201: Reply(told.GrantsResponse, "The role has it."),
            **BODY_PROBLEMS,
            404: NOT_FOUND,
            409: _error("The catalog or a read-only server does not allow it; the text says why."),
            **SQL_PROBLEMS,
        },
        needs_token=False,
    ),
    _spans(needs_token=False),
    OPENAPI,
)

TESTING_ONLY = Operation(
    method="POST",
    path="/failpoints",
    handler=failpoints,
    summary="Set what shall happen at failpoints.",
    body=list[asked.FailpointRequest],
    replies={200: Reply(None, "They are set."), **BODY_PROBLEMS},
    needs_token=False,
)


def internal_operations(*, testing: bool) -> tuple[Operation, ...]:
    """Return the operations of the internal server; failpoints are there only in tests."""
    return (*INTERNAL_ONLY, TESTING_ONLY) if testing else INTERNAL_ONLY
