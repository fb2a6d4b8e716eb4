"""Every route of a compute as a function that says what to send and how the answer is read.

A route that is new needs one function here and one line in each client; a test holds all three against the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from trio_compute.client.core import CHANGE_PATIENCE_SECONDS, Call, path_with
from trio_compute.model.lfc import OffloadState, PrewarmState
from trio_compute.model.promotion import PromoteCompleted
from trio_compute.model.requests import TerminateMode
from trio_compute.model.responses import (
    CatalogResponse,
    ExtensionResponse,
    GrantsResponse,
    HealthResponse,
    InsightsResponse,
    MetricsResponse,
    StatusResponse,
    TerminateResponse,
)
from trio_compute.plan.preview import Preview
from trio_compute.telemetry.spans import Span

T = TypeVar("T")

Object = dict[str, Any]

_PROBE_STATUSES = frozenset({503})
_LONG_POLL_MARGIN_SECONDS = 30.0


def _as(kind: type[T]) -> Callable[[bytes], T]:
    return lambda body: msgspec.json.decode(body, type=kind)


def _prewarm_state(body: bytes) -> PrewarmState:
    state: PrewarmState = msgspec.json.decode(body, type=PrewarmState)
    return state


def _offload_state(body: bytes) -> OffloadState:
    state: OffloadState = msgspec.json.decode(body, type=OffloadState)
    return state


def _text(body: bytes) -> str:
    return body.decode()


def _nothing(_body: bytes) -> None:
    return None


def _encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else msgspec.json.encode(value)


def request(
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: object = None,
    internal: bool = False,
) -> Call[bytes]:
    """Ask for any path; the result is the body as it came. A `body` is sent as JSON, bytes as they are."""
    sent = None if body is None else _encoded(body)
    return Call(method=method, path=path, read=bytes, query=query or {}, body=sent, internal=internal)


def status(
    *, wait_for: Iterable[str] = (), since: int | None = None, timeout_seconds: float = 30.0
) -> Call[StatusResponse]:
    """Tell the status: at once, or when it is one of `wait_for` and its revision is beyond `since`, or in time."""
    wanted = ",".join(wait_for)
    query = {"wait_for": wanted} if wanted else {}
    if since is not None:
        query["since"] = str(since)
    if query:
        query["timeout"] = f"{timeout_seconds:.3f}s"
    patience = timeout_seconds + _LONG_POLL_MARGIN_SECONDS
    return Call(method="GET", path="/status", read=_as(StatusResponse), query=query, patience_seconds=patience)


def metrics() -> Call[str]:
    """Tell all metrics in Prometheus' text format."""
    return Call(method="GET", path="/metrics", read=_text)


def metrics_json() -> Call[MetricsResponse]:
    """Tell how long the steps of the start took."""
    return Call(method="GET", path="/metrics.json", read=_as(MetricsResponse))


def events(*, after: int | None = None) -> Call[bytes]:
    """Follow what happens, beginning behind the event `after`, or with the next one."""
    query = {} if after is None else {"after": str(after)}
    return Call(method="GET", path="/events", read=bytes, query=query)


def configure(config: object, *, idempotency_key: str | None = None) -> Call[StatusResponse]:
    """Bring the compute to what a configuration wants, an object with `spec` or its JSON; return when it is done."""
    headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
    return Call(
        method="POST",
        path="/configure",
        read=_as(StatusResponse),
        headers=headers,
        body=_encoded(config),
        patience_seconds=CHANGE_PATIENCE_SECONDS,
    )


def configure_dry_run(config: object) -> Call[Preview]:
    """Tell what `configure` would do, and do nothing."""
    return Call(method="POST", path="/configure", read=_as(Preview), query={"dry_run": "true"}, body=_encoded(config))


def terminate(*, mode: TerminateMode = "fast", if_idle: bool = False) -> Call[TerminateResponse]:
    """End the compute and tell up to which LSN its commits are safe; `if_idle`: ApiError 409 if somebody works."""
    query = {"mode": mode, **({"if_idle": "true"} if if_idle else {})}
    return Call(
        method="POST",
        path="/terminate",
        read=_as(TerminateResponse),
        query=query,
        patience_seconds=CHANGE_PATIENCE_SECONDS,
    )


def livez() -> Call[HealthResponse]:
    """Tell whether the process works."""
    return Call(method="GET", path="/livez", read=_as(HealthResponse), taken=_PROBE_STATUSES)


def readyz() -> Call[HealthResponse]:
    """Tell whether Postgres takes connections."""
    return Call(method="GET", path="/readyz", read=_as(HealthResponse), taken=_PROBE_STATUSES)


def startupz() -> Call[HealthResponse]:
    """Tell whether the start is over."""
    return Call(method="GET", path="/startupz", read=_as(HealthResponse), taken=_PROBE_STATUSES)


def openapi() -> Call[Object]:
    """Tell what the API is."""
    return Call(method="GET", path="/openapi.json", read=_as(Object))


def check_writability() -> Call[bool]:
    """Write a row; ApiError 500 if that is impossible."""
    return Call(method="POST", path="/check_writability", read=_as(bool))


def database_schema(database: str) -> Call[str]:
    """Tell the schema of a database as SQL; ApiError 404 if there is none of that name."""
    return Call(
        method="GET",
        path="/database_schema",
        read=_text,
        query={"database": database},
        patience_seconds=CHANGE_PATIENCE_SECONDS,
    )


def dbs_and_roles() -> Call[CatalogResponse]:
    """Tell all databases and roles."""
    return Call(method="GET", path="/dbs_and_roles", read=_as(CatalogResponse))


def insights() -> Call[InsightsResponse]:
    """Tell what takes most of the time in Postgres."""
    return Call(method="GET", path="/insights", read=_as(InsightsResponse))


def hadron_liveness_probe() -> Call[str]:
    """Tell whether Postgres answers."""
    return Call(method="GET", path="/hadron_liveness_probe", read=_as(str))


def autoscaling_metrics() -> Call[str]:
    """Tell the metrics that autoscaling looks at."""
    return Call(method="GET", path="/autoscaling_metrics", read=_text)


def promote(spec: object, wal_flush_lsn: str) -> Call[PromoteCompleted]:
    """Make a replica the primary of a spec; return how long each step took."""
    body = _encoded({"spec": spec, "wal_flush_lsn": wal_flush_lsn})
    return Call(
        method="POST", path="/promote", read=_as(PromoteCompleted), body=body, patience_seconds=CHANGE_PATIENCE_SECONDS
    )


def lfc_prewarm_state() -> Call[PrewarmState]:
    """Tell how far the prewarm is."""
    return Call(method="GET", path="/lfc/prewarm", read=_prewarm_state)


def lfc_prewarm(*, from_endpoint: str | None = None) -> Call[None]:
    """Begin to fill the cache with what this endpoint, or another one, had in its own."""
    query = {} if from_endpoint is None else {"from_endpoint": from_endpoint}
    return Call(method="POST", path="/lfc/prewarm", read=_nothing, query=query)


def lfc_prewarm_cancel() -> Call[None]:
    """End a prewarm."""
    return Call(method="DELETE", path="/lfc/prewarm", read=_nothing)


def lfc_offload_state() -> Call[OffloadState]:
    """Tell how far the offload is."""
    return Call(method="GET", path="/lfc/offload", read=_offload_state)


def lfc_offload() -> Call[None]:
    """Begin to store what is in the cache."""
    return Call(method="POST", path="/lfc/offload", read=_nothing)


def refresh_configuration() -> Call[None]:
    """Let the compute fetch its configuration again; returns at once."""
    return Call(method="POST", path="/refresh_configuration", read=_nothing, internal=True)


def spans() -> Call[list[Span]]:
    """Tell the measured phases."""
    return Call(method="GET", path="/spans", read=_as(list[Span]))


def failpoints(actions: Mapping[str, str]) -> Call[None]:
    """Set what shall happen at failpoints; only a compute under test can."""
    body = _encoded([{"name": name, "actions": action} for name, action in actions.items()])
    return Call(method="POST", path="/failpoints", read=_nothing, body=body, internal=True)


def extensions(extension: str, *, database: str, version: str) -> Call[ExtensionResponse]:
    """Have an extension in a database, in a version."""
    body = _encoded({"extension": extension, "database": database, "version": version})
    return Call(method="POST", path="/extensions", read=_as(ExtensionResponse), body=body, internal=True)


def grants(role: str, *, database: str, schema: str, privileges: Iterable[str]) -> Call[GrantsResponse]:
    """Let a role have privileges on a schema."""
    wanted = {"database": database, "schema": schema, "privileges": [*privileges], "role": role}
    return Call(method="POST", path="/grants", read=_as(GrantsResponse), body=_encoded(wanted), internal=True)


def extension_server(name: str, *, is_library: bool = False) -> Call[None]:
    """Download the files of an extension, or of a library."""
    query = {"is_library": "true"} if is_library else {}
    return Call(
        method="POST",
        path=path_with("/extension_server/", name),
        read=_nothing,
        query=query,
        internal=True,
        patience_seconds=CHANGE_PATIENCE_SECONDS,
    )
