"""Bodies of the HTTP API (contract 03)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from trio_compute.model.ids import LsnText
from trio_compute.model.spec import ComputeSpec, Wire, about

Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Privilege = Literal[
    "SELECT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "TRUNCATE",
    "REFERENCES",
    "TRIGGER",
    "USAGE",
    "CREATE",
    "CONNECT",
    "TEMPORARY",
    "EXECUTE",
]
TerminateMode = Literal["fast", "immediate"]


class ConfigureRequest(Wire, frozen=True):
    """Be the body of `/configure`; `compute_ctl_config` is taken at process start only, so here it may be absent."""

    spec: ComputeSpec
    compute_ctl_config: Any = None


class ConfigureQuery(Struct, frozen=True):
    """Hold the parameters of `POST /configure`."""

    dry_run: Annotated[bool, Meta(description="Tell what would be done, and do nothing.")] = False


class TerminateQuery(Struct, frozen=True):
    """Hold the parameters of `POST /terminate`."""

    mode: Annotated[TerminateMode, Meta(description="How long to go on answering: 30 s or 0.3 s.")] = "fast"
    if_idle: Annotated[bool, Meta(description="Only if nobody is working; 409 otherwise.")] = False


class StatusQuery(Struct, frozen=True):
    """Hold the parameters of `GET /status`: without any the answer comes at once."""

    wait_for: Annotated[str | None, Meta(description="Statuses to wait for, separated by commas.")] = None
    since: Annotated[Natural | None, Meta(description="Wait until `revision` is greater than this.")] = None
    timeout: Annotated[str, Meta(description="How long to wait, such as `30s`, `500ms` or `2m`.")] = "30s"


class EventsQuery(Struct, frozen=True):
    """Hold the parameters of `GET /events`."""

    after: Annotated[Natural | None, Meta(description="The last event seen; none: only new ones.")] = None


class ExtensionQuery(Struct, frozen=True):
    """Hold the parameters of `POST /extension_server/…`."""

    is_library: Annotated[bool, Meta(description="The name is that of a library, not of an extension.")] = False


class SchemaQuery(Struct, frozen=True):
    """Hold the parameters of `GET /database_schema`."""

    database: Annotated[str, Meta(description="Name of the database.")]


class PrewarmQuery(Struct, frozen=True):
    """Hold the parameters of `POST /lfc/prewarm`."""

    from_endpoint: Annotated[
        str | None, Meta(description="Load the state that this endpoint stored, instead of the own one.")
    ] = None


class PromoteRequest(Struct, frozen=True):
    """Be the body of `/promote`."""

    spec: Annotated[ComputeSpec, about("What the compute shall be as primary; its mode must be `Primary`.")]
    wal_flush_lsn: Annotated[LsnText, about("The LSN that the old primary's `/terminate` answered.", "0/169AD58")]


class FailpointRequest(Struct, frozen=True):
    """Set what shall happen at one failpoint; `action` is another word for `actions`, which test suites use."""

    name: str
    actions: str | None = None
    action: str | None = None


class ExtensionRequest(Struct, frozen=True):
    """Be the body of `/extensions`: what to install, in which database, at which version."""

    extension: str
    database: str
    version: str


class GrantsRequest(Struct, frozen=True):
    """Be the body of `/grants`: what a role shall have on a schema; only `USAGE` and `CREATE` mean something there."""

    database: str
    schema: str
    privileges: list[Privilege]
    role: str
