"""Finished spans in the protobuf of OTLP, `ExportTraceServiceRequest` (contract 10 §8).

Written by hand: the library would take 7 MB of every compute. Tests read it back with the library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from msgspec import Struct

from trio_compute.telemetry.redaction import redact
from trio_compute.telemetry.spans import Span
from trio_compute.telemetry.trace_context import Place, TraceContext

# Ours → the contract's.
NAMES = {"load_ext": "download_preload_extensions", "migrations": "handle_migrations"}
# Sums for /metrics.json, no work of their own; `start_compute` is the whole start.
NOT_EXPORTED = frozenset({"total_startup", "wait_for_spec"})
SCOPE = "trio_compute"

_LONGEST_TEXT = 256
_NANOSECONDS = 1_000_000_000
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_INTERNAL, _SERVER = 1, 2
_STATUS_ERROR = 2
_SAMPLED, _KNOWS_REMOTE, _REMOTE = 0x1, 0x100, 0x200
_U64 = 2**64


class Finished(Struct, frozen=True):
    """Hold a finished span and its place in a trace."""

    span: Span
    place: Place


def is_exported(finished: Finished) -> bool:
    """Tell whether a span goes out: not if the caller does not record his trace, as samplers by parent have it."""
    origin = finished.place.origin
    return finished.span.name not in NOT_EXPORTED and (origin is None or origin.sampled)


def encode(spans: Iterable[Finished], *, resource: Mapping[str, str], origin_ns: int) -> bytes:
    """Return a request with these spans; `origin_ns` is the Unix time of the recorder's origin."""
    scope = _bytes(1, _text(1, SCOPE))
    scope_spans = scope + b"".join(_bytes(2, _span(finished, origin_ns)) for finished in spans)
    described = b"".join(_bytes(1, _attribute(name, value)) for name, value in resource.items())
    return _bytes(1, _bytes(1, described) + _bytes(2, scope_spans))


def _span(finished: Finished, origin_ns: int) -> bytes:
    span, place = finished.span, finished.place
    above, context = place.above, place.origin
    start = origin_ns + round(span.start_seconds * _NANOSECONDS)
    end = start + round((span.duration_seconds or 0.0) * _NANOSECONDS)
    is_request = "http.request.method" in span.attributes
    remote = _REMOTE if isinstance(above, TraceContext) else 0
    return b"".join(
        (
            _bytes(1, place.trace_id),
            _bytes(2, place.span_id),
            _text(3, "" if context is None else context.state),
            b"" if above is None else _bytes(4, above.span_id),
            _text(5, NAMES.get(span.name, span.name)),
            _number(6, _SERVER if is_request else _INTERNAL),
            _fixed64(7, start),
            _fixed64(8, end),
            *(_bytes(9, _attribute(name, value)) for name, value in span.attributes.items()),
            _bytes(15, _number(3, _STATUS_ERROR)) if span.failed else b"",
            _key(16, _FIXED32) + struct.pack("<I", _SAMPLED | _KNOWS_REMOTE | remote),
        )
    )


def _attribute(name: str, value: object) -> bytes:
    return _text(1, name) + _bytes(2, _value(value))


def _value(value: object) -> bytes:
    """Return AnyValue; one of its kind must be there also if it is 0."""
    match value:
        case bool():
            return _key(2, _VARINT) + _varint(int(value))
        case int() if -(_U64 // 2) <= value < _U64 // 2:
            return _key(3, _VARINT) + _varint(value % _U64)
        case float():
            return _key(4, _FIXED64) + struct.pack("<d", value)
        case _:
            # Cut after it was redacted: half a secret would not be recognized.
            return _bytes(1, _utf8(redact(str(value))[:_LONGEST_TEXT]))


def _text(number: int, value: str) -> bytes:
    return _bytes(number, _utf8(value)) if value else b""


def _utf8(value: str) -> bytes:
    return value.encode(errors="replace")


def _fixed64(number: int, value: int) -> bytes:
    return _key(number, _FIXED64) + struct.pack("<Q", max(0, value))


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _LENGTH) + _varint(len(value)) + value


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    output = bytearray()
    while value >= 0x80:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    output.append(value)
    return bytes(output)
