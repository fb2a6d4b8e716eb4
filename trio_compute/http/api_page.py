"""docs/http-api.md, written from the table of operations: one section for each route."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from trio_compute.http.api_examples import BODY_FILES, EXAMPLES, PATHS, QUERIES
from trio_compute.http.api_prose import HEAD, SUBJECTS
from trio_compute.http.openapi import openapi_document, openapi_path, placed_operations, replies_of
from trio_compute.http.operation import JSON, Operation, Reply
from trio_compute.settings import DEFAULT_EXTERNAL_PORT, DEFAULT_INTERNAL_PORT

_MODULES = re.compile(r"\b([a-z_]+\.)+")
_PORTS = {"external": DEFAULT_EXTERNAL_PORT, "internal": DEFAULT_INTERNAL_PORT}


def api_page() -> str:
    """Return the text of docs/http-api.md."""
    placed = placed_operations()
    sections = (line for operation, servers in placed for line in _section(operation, servers))
    return "\n".join([HEAD, *_overview(placed), SUBJECTS, "## Routes", "", *sections])


def _overview(placed: list[tuple[Operation, list[str]]]) -> Iterator[str]:
    yield from ("## All routes", "", "| route | server | token | what it does |", "|---|---|---|---|")
    for operation, servers in placed:
        link = f"[{operation.method} {_escaped(openapi_path(operation))}](#{_anchor(operation)})"
        yield f"| {link} | {', '.join(servers)} | {_token(operation, servers)} | {operation.summary} |"
    yield ""


def _token(operation: Operation, servers: list[str]) -> str:
    if not operation.needs_token:
        return "–"
    return "yes" if len(servers) == 1 else "external"


def _anchor(operation: Operation) -> str:
    """Return what GitHub makes of the heading: lower case, blanks as hyphens, no other punctuation."""
    kept = (c for c in f"{operation.method} {openapi_path(operation)}".lower() if c.isalnum() or c in " _-")
    return "".join(kept).replace(" ", "-")


def _section(operation: Operation, servers: list[str]) -> Iterator[str]:
    path = openapi_path(operation)
    described: dict[str, Any] = openapi_document()["paths"][path][operation.method.lower()]
    yield from (f"### {operation.method} {path}", "", described["description"], "")
    yield from ("```sh", curl_line(operation, servers), "```", "")
    parameters = [parameter for parameter in described["parameters"] if "$ref" not in parameter]
    if parameters:
        yield from ("| parameter | in | type | default | meaning |", "|---|---|---|---|---|")
        yield from map(_parameter_row, parameters)
        yield ""
    if operation.body is not None:
        yield from (f"Body: {_type_name(operation.body)}, at most {operation.max_body_bytes >> 20} MiB.", "")
    yield from ("| status | body | meaning |", "|---|---|---|")
    yield from (_reply_row(code, reply) for code, reply in replies_of(operation).items())
    yield ""


def _parameter_row(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    default = "*required*" if parameter.get("required") else _json(schema["default"]) if "default" in schema else "none"
    kind = ", ".join(map(_json, schema["enum"])) if "enum" in schema else schema.get("type", "any")
    cells = (f"`{parameter['name']}`", parameter["in"], kind, default, parameter["description"])
    return f"| {' | '.join(map(_escaped, cells))} |"


def _reply_row(code: int, reply: Reply) -> str:
    body = (
        "empty" if reply.body is None else _type_name(reply.body) if reply.content_type == JSON else reply.content_type
    )
    return f"| {code} | {_escaped(body)} | {_escaped(reply.description)} |"


def _type_name(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return f"`{_MODULES.sub('', text)}`"


def curl_line(operation: Operation, servers: list[str]) -> str:
    """Return a command that asks for an operation, with an example of whatever it needs."""
    words = ["curl"]
    if operation.path == "/events":
        words.append("-N")
    if operation.needs_token:
        words += ["-H", '"Authorization: Bearer $TOKEN"']
    if operation.body is not None:
        words += ["-H", f"'content-type: {JSON}'", "-d", _body_argument(operation)]
    elif operation.method != "GET":
        words += ["-X", operation.method]
    path = operation.path + (quote(PATHS[operation.path]) if operation.has_rest else "")
    query = QUERIES.get((operation.method, operation.path), "")
    return " ".join([*words, shlex.quote(f"http://localhost:{_PORTS[servers[0]]}{path}{query and '?'}{query}")])


def _body_argument(operation: Operation) -> str:
    if operation.path in BODY_FILES:
        return f"@{BODY_FILES[operation.path]}"
    name = getattr(operation.body, "__name__", "")
    # A list of objects is shown with one.
    example = EXAMPLES[name] if name in EXAMPLES else [EXAMPLES[operation.body.__args__[0].__name__]]
    return shlex.quote(msgspec.json.encode(example).decode())


def _json(value: object) -> str:
    return f"`{msgspec.json.encode(value).decode()}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
