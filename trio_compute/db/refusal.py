"""Why Postgres refuses a session, as an SQLSTATE: libpq tells only the text, which depends on the server's language."""

from __future__ import annotations

import struct

import trio

from trio_compute.db.target import Target

PROTOCOL_VERSION = 196608
LONGEST_ANSWER = 10_000
ACCEPTED = "00000"
PASSWORD_WANTED = "28P01"  # noqa: S105  (an SQLSTATE)


async def refusal(target: Target, *, timeout_seconds: float) -> str | None:
    """Ask for a session once more and return the SQLSTATE of the answer, or None if none comes.

    A server that asks for a password counts as one that refuses it, since a login with it has just failed.
    """
    try:
        with trio.move_on_after(timeout_seconds):
            async with await _connect(target) as stream:
                await stream.send_all(_startup(target))
                return await _first_answer(stream)
    except (OSError, trio.BrokenResourceError, struct.error):
        return None
    return None


async def _connect(target: Target) -> trio.SocketStream:
    if target.host.startswith("/"):
        return await trio.open_unix_socket(f"{target.host}/.s.PGSQL.{target.port}")
    return await trio.open_tcp_stream(target.host, target.port)


def _startup(target: Target) -> bytes:
    # The same options, for the server may well let us in, and then everything happens that happens in a session.
    fields = {
        "user": target.user,
        "database": target.dbname,
        "application_name": target.application_name,
        "options": target.options,
    }
    pairs = (f"{name}\0{value}\0".encode(errors="surrogateescape") for name, value in fields.items() if value)
    body = b"".join(pairs) + b"\0"
    return struct.pack("!ii", len(body) + 8, PROTOCOL_VERSION) + body


async def _first_answer(stream: trio.SocketStream) -> str | None:
    kind, body, rest = await _message(stream, b"")
    if kind == b"R":
        if struct.unpack("!i", body[:4])[0] != 0:
            return PASSWORD_WANTED
        kind, body, _ = await _message(stream, rest)
    if kind != b"E":
        return ACCEPTED if kind else None
    return next((field[1:].decode(errors="replace") for field in body.split(b"\0") if field[:1] == b"C"), None)


async def _message(stream: trio.SocketStream, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the type and the body of the next message, and what follows it; all are empty at the end."""
    while len(data) < 5 or len(data) < 1 + struct.unpack("!i", data[1:5])[0]:
        received = await stream.receive_some(4096)
        data += received
        if not received or len(data) > LONGEST_ANSWER:
            return b"", b"", b""
    end = 1 + int(struct.unpack("!i", data[1:5])[0])
    return data[:1], data[5:end], data[end:]
