"""The form of a basebackup, byte for byte as a pageserver makes it (contract 07 §4.5, §4.6).

GNU headers without owners, files of the old kind (a NUL), names of directories without a slash, two zero blocks at the
end and not one more, in one gzip member that tells no file name.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zlib_ng import zlib_ng

from trio_compute.errors import HostError

BLOCK = 512
END = bytes(2 * BLOCK)
GZIP = 31  # zlib's word for a gzip member
FASTEST = 1
READ_BYTES = 512 * 1024
SIGNALS = ("neon.signal", "zenith.signal")
LONGEST_NAME = 100
_SIZE_AT, _SIZE_END = 124, 136
_CHECKSUM_AT = 148
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s247x")


def file_entry(name: str, data: bytes) -> bytes:
    """Return a file with its header and padding."""
    return _header(name, 0o600, len(data), b"\0") + data + bytes(-len(data) % BLOCK)


def directory_entry(name: str) -> bytes:
    """Return a directory."""
    return _header(name, 0o755, 0, b"5")


def _header(name: str, mode: int, size: int, kind: bytes) -> bytes:
    encoded = name.encode()
    if len(encoded) > LONGEST_NAME:
        raise HostError(f"{name} is too long a name for a basebackup")
    times = (b"%011o" % size, b"%011o" % int(time.time()))
    header = _HEADER.pack(encoded, b"%07o" % mode, b"", b"", *times, b" " * 8, kind, b"", b"ustar  \0")
    checksum = b"%07o\0" % sum(header)
    return header[:_CHECKSUM_AT] + checksum + header[_CHECKSUM_AT + len(checksum) :]


def signal_text(prev: object) -> bytes:
    """Return what neon.signal says: an LSN, `none` for a timeline without WAL of its own, or `invalid`."""
    return f"PREV LSN: {prev}".encode()


def compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield one gzip member."""
    packer: Any = zlib_ng.compressobj(FASTEST, zlib_ng.DEFLATED, GZIP)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def basebackup(path: Path, *, gzip: bool = True, signal: bytes | None = None) -> Iterator[bytes]:
    """Yield a stored basebackup, plain if wanted, with another text in its signal files if there is one; blocking."""
    with path.open("rb") as file:
        stored = iter(lambda: file.read(READ_BYTES), b"")
        if gzip and signal is None:
            yield from stored
            return
        plain = _decompressed(stored)
        if signal is not None:
            plain = with_signal(plain, signal)
        yield from compressed(plain) if gzip else plain


def _decompressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    unpacker: Any = zlib_ng.decompressobj(GZIP)
    for piece in pieces:
        if plain := unpacker.decompress(piece):
            yield plain
    yield unpacker.flush()


def with_signal(pieces: Iterable[bytes], text: bytes) -> Iterator[bytes]:
    """Yield an archive in which the signal files have another text; each fits one block, before and afterwards."""
    buffer, skipping = bytearray(), 0
    for piece in pieces:
        buffer += piece
        while skipping or len(buffer) >= 2 * BLOCK:
            if skipping:
                taken = bytes(buffer[:skipping])
                del buffer[: len(taken)]
                skipping -= len(taken)
                yield taken
                if skipping:
                    break
                continue
            header = bytes(buffer[:BLOCK])
            name = header[:LONGEST_NAME].rstrip(b"\0").decode(errors="replace")
            if name in SIGNALS:
                del buffer[: 2 * BLOCK]
                yield file_entry(name, text)
                continue
            del buffer[:BLOCK]
            size = int(header[_SIZE_AT:_SIZE_END].rstrip(b"\0 ") or b"0", 8)
            skipping = -(-size // BLOCK) * BLOCK
            yield header
    yield bytes(buffer)
