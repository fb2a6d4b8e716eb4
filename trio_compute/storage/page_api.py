"""The five messages of Neon's `page_api.PageService` that a compute needs, in protobuf's wire format (contract 07 §5).

Fields at their default are not sent; unknown fields are skipped; of a repeated one the last counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from msgspec import Struct

from trio_compute.model.ids import INVALID_LSN, Lsn

SERVICE = "page_api.PageService"
GET_BASE_BACKUP = "GetBaseBackup"
LEASE_LSN = "LeaseLsn"

_VARINT, _LENGTH = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10
_U64 = 2**64
_NANOS = 1_000_000_000

Field = tuple[int, int | memoryview]


class MalformedMessage(ValueError):
    """Report bytes that are not the message they should be."""


class Compression(enum.IntEnum):
    """Name the ways to compress a basebackup."""

    UNKNOWN = 0
    NONE = 1
    GZIP = 2


class BaseBackupRequest(Struct, frozen=True, kw_only=True):
    """Ask for a basebackup; LSN 0/0 means the newest."""

    lsn: Lsn = INVALID_LSN
    replica: bool = False
    full: bool = False
    compression: int = Compression.GZIP

    def encode(self) -> bytes:
        """Return GetBaseBackupRequest."""
        values = (self.lsn, self.replica, self.full, self.compression)
        return b"".join(_number(number, int(value)) for number, value in enumerate(values, start=1))

    @classmethod
    def decode(cls, data: bytes) -> BaseBackupRequest:
        """Read GetBaseBackupRequest; raise MalformedMessage."""
        numbers = _numbers(data)
        return cls(
            lsn=Lsn(numbers.get(1, 0)),
            replica=bool(numbers.get(2, 0)),
            full=bool(numbers.get(3, 0)),
            compression=numbers.get(4, 0),
        )


def encode_chunk(chunk: bytes) -> bytes:
    """Return GetBaseBackupResponseChunk."""
    return _bytes(1, chunk)


def decode_chunk(data: bytes) -> memoryview:
    """Return the data in GetBaseBackupResponseChunk without copying it; raise MalformedMessage."""
    return _last_bytes(data, 1) or memoryview(b"")


def encode_lease_request(lsn: Lsn) -> bytes:
    """Return LeaseLsnRequest."""
    return _number(1, lsn)


def decode_lease_request(data: bytes) -> Lsn:
    """Return the LSN in LeaseLsnRequest; raise MalformedMessage."""
    return Lsn(_numbers(data).get(1, 0))


def encode_lease_response(expires_at: float) -> bytes:
    """Return LeaseLsnResponse with a time in Unix seconds."""
    seconds, nanos = divmod(round(expires_at * _NANOS), _NANOS)
    return _bytes(1, _number(1, seconds % _U64) + _number(2, nanos))


def decode_lease_response(data: bytes) -> float:
    """Return the expiry in LeaseLsnResponse, in Unix seconds; raise MalformedMessage if there is none."""
    timestamp = _last_bytes(data, 1)
    if timestamp is None:
        raise MalformedMessage("the answer has no expiry")
    numbers = _numbers(timestamp)
    seconds = numbers.get(1, 0)
    return (seconds - _U64 if seconds >= _U64 // 2 else seconds) + numbers.get(2, 0) / _NANOS


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    output = bytearray()
    while value >= 0x80:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    output.append(value)
    return bytes(output)


def _numbers(data: bytes | memoryview) -> dict[int, int]:
    return {number: value for number, value in _fields(data) if isinstance(value, int)}


def _last_bytes(data: bytes, wanted: int) -> memoryview | None:
    found = None
    for number, value in _fields(data):
        if number == wanted:
            if isinstance(value, int):
                raise MalformedMessage(f"field {number} is not of bytes")
            found = value
    return found


def _fields(data: bytes | memoryview) -> Iterator[Field]:
    """Yield every field: its number, and its value as far as the wire tells the type."""
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = _read_varint(view, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(view, at)
            yield key >> 3, value
            continue
        size, at = _size(kind, view, at)
        if size > len(view) - at:
            raise MalformedMessage("a field is longer than its message")
        yield key >> 3, view[at : at + size] if kind == _LENGTH else int.from_bytes(view[at : at + size], "little")
        at += size


def _size(kind: int, view: memoryview, at: int) -> tuple[int, int]:
    if kind == _LENGTH:
        return _read_varint(view, at)
    if kind not in _FIXED_SIZES:
        raise MalformedMessage(f"wire type {kind} is not supported")
    return _FIXED_SIZES[kind], at


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(view[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value % _U64, at + position + 1
    raise MalformedMessage("a number does not end")
