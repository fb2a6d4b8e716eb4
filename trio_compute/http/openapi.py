"""The description of both servers as OpenAPI 3.1, made from the table of operations and the types of their bodies.

Nothing of it is needed to serve a request, so it is loaded when somebody asks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args

import msgspec
from msgspec import Struct

from trio_compute import __version__
from trio_compute.http.api_examples import EXAMPLES
from trio_compute.http.operation import JSON, Operation, Reply
from trio_compute.http.table import EXTERNAL, internal_operations
from trio_compute.lifecycle.status import Status
from trio_compute.model.responses import ErrorResponse
from trio_compute.model.schema import DIALECT, plain_text, portable
from trio_compute.settings import DEFAULT_EXTERNAL_PORT, DEFAULT_INTERNAL_PORT

_INTRODUCTION = """\
What a control plane, a person, a probe or an extension of Postgres may ask of a compute.

- Every answer carries `x-request-id`: the one of the request, or a new UUID.
- `traceparent` and `tracestate` (W3C) let a request go on with its caller's trace; invalid ones are ignored.
- HEAD works wherever GET does. An unknown path is 404, another method 405 with `allow`; both have an empty body.
- Errors are `{"error": "<text>"}`. Unknown parameters and unknown keys of a body are ignored.
- A body is taken as it is sent: nobody undoes a `content-encoding`.
- What a request began goes on though its client leaves.
"""

_UNAUTHENTICATED = "There is no bearer token in the header `authorization`."
TOKEN_REPLIES = {
    400: Reply(ErrorResponse, _UNAUTHENTICATED),
    401: Reply(ErrorResponse, "The token cannot be verified, has expired, or is an admin's for another audience."),
    403: Reply(ErrorResponse, "The token is another compute's."),
}
BODY_REPLIES = {408: Reply(ErrorResponse, "The body did not come in time.")}
DEFECT = Reply(ErrorResponse, "A defect of the compute; its text is in the log alone.")
_SHARED = {
    "Unauthenticated": TOKEN_REPLIES[400],
    "Unverified": TOKEN_REPLIES[401],
    "Forbidden": TOKEN_REPLIES[403],
    "TooSlow": BODY_REPLIES[408],
    "Defect": DEFECT,
}

_STATUSES = [status.value for status in Status]
_ONE_STATUS = "|".join(_STATUSES).replace("_", "[_-]")
_FRACTION = r"(\.[0-9]{1,3})?"
# What the types do not say: statuses belong to a floor above theirs, times are read by the handler.
_REFINED: Mapping[tuple[str, str], dict[str, Any]] = {
    ("StatusResponse", "status"): {"enum": _STATUSES},
    ("PassageResponse", "from"): {"enum": _STATUSES},
    ("PassageResponse", "to"): {"enum": _STATUSES},
    ("StatusQuery", "wait_for"): {"pattern": f"^({_ONE_STATUS})(,({_ONE_STATUS}))*$", "examples": ["running,failed"]},
    ("StatusQuery", "timeout"): {
        "pattern": f"^([0-9]{{1,5}}{_FRACTION}ms|[0-2]?[0-9]{{1,2}}{_FRACTION}s?|[0-4]{_FRACTION}m|300s?|5m)$",
        "examples": ["30s"],
    },
}

# By path and method, then by server.
_Served = dict[tuple[str, str], dict[str, Operation]]


@cache
def openapi_document() -> dict[str, Any]:
    """Return the description of all operations, those of tests included."""
    served = _served()
    operations = [operation for operation, _ in placed_operations()]
    schemas, definitions = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation, both in zip(operations, served.values(), strict=True):
        entry = {**_operation(operation, schemas, definitions), **_placed(both)}
        paths.setdefault(openapi_path(operation), {})[operation.method.lower()] = entry
    queries = {operation.query.__name__ for operation in operations if operation.query is not None}
    kept = {name: schema for name, schema in definitions.items() if name not in queries}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": DIALECT,
        "info": {"title": "trio_compute", "version": __version__, "description": _INTRODUCTION},
        "servers": [_SERVERS["external"]],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": server["description"]} for name, server in _SERVERS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": _TOKEN_SCHEME},
            "parameters": {"x-request-id": _REQUEST_ID_PARAMETER},
            "headers": {"x-request-id": _REQUEST_ID},
            "responses": {name: _response(reply, schemas) for name, reply in _SHARED.items()},
            "schemas": dict(sorted(kept.items())),
        },
    }


def placed_operations() -> list[tuple[Operation, list[str]]]:
    """Return every operation with the servers that have it; where both do, the external one's."""
    return [(next(iter(both.values())), [*both]) for both in _served().values()]


@cache
def openapi_json() -> bytes:
    """Return the description as it is sent."""
    return msgspec.json.encode(openapi_document())


def openapi_path(operation: Operation) -> str:
    """Return the path of an operation as a template."""
    return f"{operation.path}{{rest}}" if operation.has_rest else operation.path


def replies_of(operation: Operation) -> dict[int, Reply]:
    """Return every answer of an operation by status, the ones that all have in common included."""
    common = {
        **(TOKEN_REPLIES if operation.needs_token else {}),
        **(BODY_REPLIES if operation.body is not None else {}),
    }
    replies = {500: DEFECT, **common, **operation.replies}
    if operation.needs_token and 400 in operation.replies:
        own = operation.replies[400]
        replies[400] = Reply(own.body, f"{own.description} Or: {_UNAUTHENTICATED}", own.content_type)
    return dict(sorted(replies.items()))


_TOKEN_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "Signed with a key of `compute_ctl_config.jwks`, EdDSA or RS256. Either `compute_id` is that of the "
    'compute, or `scope` is `"compute_ctl:admin"` and `aud` an array that holds `"compute"`.',
}
_REQUEST_ID = {
    "description": "The id of the request: as it was sent, or a new UUID.",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
_REQUEST_ID_PARAMETER = {
    "name": "x-request-id",
    "in": "header",
    "description": "Is repeated in answer and log; one that is not ASCII or longer than 128 characters is replaced.",
    "schema": {"type": "string"},
}


def _server(description: str, port: int) -> dict[str, Any]:
    variables = {"host": {"default": "localhost"}, "port": {"default": str(port)}}
    return {"url": "http://{host}:{port}", "description": description, "variables": variables}


_SERVERS = {
    "external": _server("The external server, for the control plane: with a token.", DEFAULT_EXTERNAL_PORT),
    "internal": _server("The internal server, for this machine alone: without a token.", DEFAULT_INTERNAL_PORT),
}


def _served() -> _Served:
    served: _Served = {}
    for name, operations in (("external", EXTERNAL), ("internal", internal_operations(testing=True))):
        for operation in operations:
            served.setdefault((operation.path, operation.method), {})[name] = operation
    return served


def _placed(both: Mapping[str, Operation]) -> dict[str, Any]:
    """Return which servers have an operation, and whether they want a token for it."""
    placed: dict[str, Any] = {"tags": [*both]}
    if [*both] != ["external"]:
        placed["servers"] = [_SERVERS[name] for name in both]
    wants = {operation.needs_token for operation in both.values()}
    if wants != {True}:
        # Either the external server with a token, or the internal one without.
        placed["security"] = [] if wants == {False} else [{"token": []}, {}]
    return placed


def _schemas(operations: Iterable[Operation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schema of each type that an operation names, and the definitions that those refer to."""
    types = dict.fromkeys(part for operation in operations for kind in _types(operation) for part in _parts(kind))
    schemas, definitions = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refined = {name: _refined(name, portable(definition)) for name, definition in definitions.items()}
    return dict(zip(types, map(portable, schemas), strict=True)), refined


def _types(operation: Operation) -> Iterator[Any]:
    named = (operation.query, operation.body, *(reply.body for reply in replies_of(operation).values()))
    yield from (kind for kind in named if kind is not None)


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of a body: msgspec has no schema for several objects that nothing tells apart."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _schema(kind: Any, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    parts = [schemas[part] for part in _parts(kind)]
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _refined(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    for (owner, field), more in _REFINED.items():
        if owner == name:
            properties = definition["properties"]
            properties[field] = {**properties[field], **more}
    if name in EXAMPLES:
        definition["examples"] = [EXAMPLES[name]]
    return definition


def _operation(operation: Operation, schemas: Mapping[Any, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "description": plain_text(inspect.getdoc(operation.handler) or operation.summary),
        "parameters": [
            *_rest_parameters(operation),
            *_query_parameters(operation.query, definitions),
            *_header_parameters(operation.headers),
            {"$ref": "#/components/parameters/x-request-id"},
        ],
        "responses": {
            str(code): _shared(reply) or _response(reply, schemas) for code, reply in replies_of(operation).items()
        },
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "description": f"At most {operation.max_body_bytes >> 20} MiB.",
            "content": {JSON: {"schema": _schema(operation.body, schemas)}},
        }
    return described


def _rest_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    if operation.has_rest:
        yield {
            "name": "rest",
            "in": "path",
            "required": True,
            "description": "What follows; it may contain `/`.",
            "schema": {"type": "string", "minLength": 1},
        }


def _query_parameters(query: type[Struct] | None, definitions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if query is None:
        return
    definition = definitions[query.__name__]
    for name, schema in definition["properties"].items():
        plain = _without_null(schema)
        parameter = {"name": name, "in": "query", "description": plain.pop("description", ""), "schema": plain}
        if name in definition.get("required", ()):
            parameter["required"] = True
        yield parameter


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is given; one that may be absent is null inside only."""
    plain = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    alternatives = [option for option in plain.pop("anyOf", ()) if option != {"type": "null"}]
    if len(alternatives) == 1:
        return {**alternatives[0], **plain}
    return {**plain, "anyOf": alternatives} if alternatives else plain


def _header_parameters(headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, meaning in headers.items():
        yield {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}


def _shared(reply: Reply) -> dict[str, Any] | None:
    names = [name for name, shared in _SHARED.items() if shared is reply]
    return {"$ref": f"#/components/responses/{names[0]}"} if names else None


def _response(reply: Reply, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    headers = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    described: dict[str, Any] = {"description": reply.description, "headers": headers}
    if reply.body is not None:
        described["content"] = {reply.content_type: {"schema": _schema(reply.body, schemas)}}
    return described
