"""The embedded control plane and endpoint storage, as plain ASGI applications (contract 01 §8, 07 §9)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct

from trio_compute.embedded.tokens import Issuer
from trio_compute.http.exchange import App, Message, Receive, Send, exchange
from trio_compute.model.ids import is_hex_id

MAX_OBJECT_BYTES = 2 * 1024 * 1024
FAULTY_METHODS = frozenset({"GET", "PUT"})
_SPEC_PATH = re.compile(r"\A/compute/api/v2/computes/(?P<compute>.+)/spec\Z")


def control_plane(answer: Callable[[str], dict[str, Any] | None], token: str) -> App:
    """Return an application that answers spec requests with what `answer` gives for a compute id; None is 404."""

    async def app(scope: Message, _receive: Receive, send: Send) -> None:
        match = _SPEC_PATH.match(scope["path"])
        if _bearer(scope) != token:
            await _respond(send, 401)
        elif match is None or (config := answer(match["compute"])) is None:
            await _respond(send, 404)
        elif scope["method"] != "GET":
            await _respond(send, 405)
        else:
            await _respond(send, 200, msgspec.json.encode(config), "application/json")

    return _careful(app)


class ObjectFaults(Struct):
    """Say how the endpoint storage misbehaves from now on, towards whoever may read and write an object.

    `status` is answered in place of the right one, `delay_seconds` after the request came; of an object that is read
    the last `cut_bytes` are missing.
    """

    delay_seconds: float = 0.0
    status: int | None = None
    cut_bytes: int = 0


def endpoint_storage(directory: Path, issuer: Issuer, faults: ObjectFaults) -> App:
    """Return an application that keeps small objects in a directory, for tokens that name tenant and timeline."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/status":
            await _respond(send, 200)
            return
        words = scope["path"].strip("/").split("/")
        if len(words) < 4 or not all(map(is_hex_id, words[:2])) or any(word in {"", ".", ".."} for word in words):
            await _respond(send, 400)
            return
        try:
            claims = issuer.claims(_bearer(scope) or "")
        except ValueError:
            await _respond(send, 400)
            return
        status = _refusal(scope["method"], words, claims)
        if status is not None:
            await _respond(send, status)
            return
        if scope["method"] in FAULTY_METHODS:
            await trio.sleep(faults.delay_seconds)
            if faults.status is not None:
                await _respond(send, faults.status)
                return
        await _serve_object(directory.joinpath(*words), faults, scope, receive, send)

    return _careful(app)


def _refusal(method: str, words: list[str], claims: dict[str, Any]) -> int | None:
    if "exp" not in claims:
        return 400
    wanted = {"tenant_id": words[0], "timeline_id": words[1]}
    if method != "GET":
        wanted["endpoint_id"] = words[2]
    return None if all(claims.get(name) == value for name, value in wanted.items()) else 401


async def _serve_object(path: Path, faults: ObjectFaults, scope: Message, receive: Receive, send: Send) -> None:
    match scope["method"]:
        case "GET" if path.is_file():
            content = path.read_bytes()
            await _respond(send, 200, content[: len(content) - faults.cut_bytes])
        case "GET":
            await _respond(send, 404, scope["path"].encode())
        case "PUT":
            body = await _read_body(receive)
            if body is None:
                await _respond(send, 413)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            await _respond(send, 200)
        case "DELETE":
            path.unlink(missing_ok=True)
            await _respond(send, 200)
        case _:
            await _respond(send, 405)


async def _read_body(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_OBJECT_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _careful(app: App) -> App:
    async def careful(scope: Message, receive: Receive, send: Send) -> None:
        await exchange(app, scope, receive, send)

    return careful


def _bearer(scope: Message) -> str | None:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return str(token) if scheme.lower() == "bearer" else None
    return None


async def _respond(send: Send, status: int, body: bytes = b"", kind: str = "application/octet-stream") -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
