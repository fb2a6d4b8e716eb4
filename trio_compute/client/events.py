"""Server-sent events, as they arrive in pieces of any size."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from trio_compute.client.core import UnexpectedAnswer


class Event(Struct, frozen=True):
    """Hold one thing that happened: its number, its kind such as `transition`, and what is to be said about it."""

    number: int
    kind: str
    data: dict[str, Any]


class EventParser:
    """Turn bytes into events; what is not finished is kept for the next piece."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete; raise UnexpectedAnswer if they are none of ours."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [event for block in blocks if (event := _event(block)) is not None]


def _event(block: bytes) -> Event | None:
    """Return the event of one block of lines, or None for a comment that keeps the connection alive."""
    lines = [line for line in block.decode(errors="replace").split("\n") if line and not line.startswith(":")]
    if not lines:
        return None
    fields = {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in lines)}
    try:
        data = msgspec.json.decode(fields["data"], type=dict[str, Any])
        return Event(int(fields["id"]), fields["event"], data)
    except (KeyError, ValueError):
        raise UnexpectedAnswer(f"not an event of a compute: {block[:100]!r}") from None
