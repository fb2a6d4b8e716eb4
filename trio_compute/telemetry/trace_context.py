"""Where work belongs in a trace: W3C trace context (contract 10 §8), and the places of our own spans in it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from msgspec import Struct

# Compiled when first needed: no start waits for it.
_TRACEPARENT = r"\A(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z"
_KEY = r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = rf"\A({_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])\Z"
_MOST_MEMBERS = 32
_LONGEST_STATE = 512
_LONGEST_PARENT = 512
_SAMPLED = 1


class TraceContext(Struct, frozen=True, kw_only=True):
    """Hold what a caller said: the trace, his span that is our parent, whether it is recorded, vendors' state."""

    trace_id: bytes
    span_id: bytes
    sampled: bool = True
    state: str = ""


def parse_trace_context(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """Return the context in the values of `traceparent` and `tracestate`, None unless exactly one parent is valid.

    A later version than 00 may go on after the flags; a state that breaks a rule is left out.
    """
    if len(parents) != 1 or len(parents[0]) > _LONGEST_PARENT:
        return None
    match = re.match(_TRACEPARENT, parents[0])
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    return TraceContext(
        trace_id=bytes.fromhex(match[2]),
        span_id=bytes.fromhex(match[3]),
        sampled=bool(int(match[4], 16) & _SAMPLED),
        state=_valid_state(",".join(states)),
    )


def _valid_state(text: str) -> str:
    if len(text) > _LONGEST_STATE:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    matches = [re.match(_MEMBER, member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    # An invalid member is in nobody's set of keys, a repeated one only once.
    return ",".join(members) if len(keys) == len(members) <= _MOST_MEMBERS else ""


class Place:
    """Be one span's place in its trace; its ids are drawn when they are first asked for, which is after the start."""

    __slots__ = ("_span_id", "_trace_id", "above", "shown")

    def __init__(self, above: Place | TraceContext | None, shown: str | None) -> None:
        self.above = above
        # By which name spans inside know it; one that only traces show is passed over.
        self.shown: str | None = shown or (above.shown if isinstance(above, Place) else None)
        self._span_id: bytes | None = None
        self._trace_id: bytes | None = None

    @property
    def span_id(self) -> bytes:
        """Return the eight bytes that name the span."""
        if self._span_id is None:
            self._span_id = os.urandom(8)
        return self._span_id

    @property
    def trace_id(self) -> bytes:
        """Return the sixteen bytes that name the trace: those of what it is part of, if there is any."""
        if self._trace_id is None:
            self._trace_id = os.urandom(16) if self.above is None else self.above.trace_id
        return self._trace_id

    @property
    def origin(self) -> TraceContext | None:
        """Return the context from outside that the trace came with."""
        above: Place | TraceContext | None = self
        while isinstance(above, Place):
            above = above.above
        return above
