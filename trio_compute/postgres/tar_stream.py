"""Read a tar stream that arrives in slices of any length, stricter than usual readers do (contract 07 §4.5).

Only ustar and GNU headers with regular files and directories are accepted. Zero blocks between entries are skipped,
because an older pageserver wrote an end marker before it reported a failure; the stream must end with two of them.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from trio_compute.errors import StorageError

BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_LONGEST_NAME_BYTES = 4096
# Far more than any name needs: the records of a pax header take twenty times its length in memory.
_LONGEST_METADATA_BYTES = 64 * 1024
# PGDATA needs a handful. Thousands could be made, but shutil.rmtree could not remove them again.
_MOST_COMPONENTS = 64
_LARGEST_SIZE = 2**63 - 1

_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_RECORD_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")
_DECIMAL = re.compile(rb"[0-9]{1,40}")

_FILE_KINDS = frozenset((b"0", b"\0", b"7"))
_METADATA_KINDS = {b"L": "GNU long name", b"K": "GNU long link", b"x": "pax header", b"g": "pax global header"}
_REFUSED_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
}


class RefusedEntryError(Exception):
    """Say what is wrong with an entry; `TarStream` adds the entry's name and offset."""


class TarSink(Protocol):
    """Receive what a tar stream holds; paths are relative, without `.` and `..`, and `b""` is the root."""

    def make_directory(self, path: bytes) -> None:
        """Take a directory."""

    def begin_file(self, path: bytes) -> None:
        """Take the name of a file whose content follows."""

    def write(self, data: memoryview) -> None:
        """Take the next part of the content."""

    def end_file(self) -> None:
        """Learn that the content is complete."""


class Header(NamedTuple):
    """Name, size in bytes and type flag of one header block."""

    name: bytes
    size: int
    kind: bytes


class TarStream:
    """Parse slices of a tar stream and hand their content to a sink, keeping no content itself.

    `what` says in messages which archive it is.
    """

    def __init__(self, sink: TarSink, *, what: str = "basebackup") -> None:
        self._what = what
        self._sink = sink
        self._offset = 0
        self._partial_block = b""
        self._zero_blocks = 0
        self._entry = b""
        self._entry_offset = 0
        self._kind = b""
        self._body_left = 0
        self._padding_left = 0
        self._metadata = bytearray()
        self._overrides: dict[str, bytes] = {}

    @property
    def place(self) -> str:
        """The entry being read and where it began, for messages."""
        if not self._entry:
            return f"the header at byte {self._entry_offset} of the tar stream"
        return f"entry {printable(self._entry)} at byte {self._entry_offset} of the tar stream"

    def feed(self, data: bytes) -> None:
        """Parse one slice; raise StorageError for what is malformed or refused."""
        view = memoryview(data)
        position = 0
        try:
            while position < len(view):
                step = self._step(view[position:])
                position += step
                self._offset += step
        except RefusedEntryError as refusal:
            raise StorageError(f"{self._what}: {refusal}, in {self.place}") from None

    def finish(self) -> None:
        """Raise StorageError unless the stream ended after the end marker."""
        if self._body_left or self._padding_left:
            short = f"{self._body_left + self._padding_left} bytes short"
            raise StorageError(f"{self._what}: the tar stream ends at byte {self._offset}, {short}, in {self.place}")
        if self._partial_block:
            raise StorageError(f"{self._what}: the tar stream ends inside a block, at byte {self._offset}")
        if self._zero_blocks < 2:
            last = f"the last is {self.place}"
            raise StorageError(f"{self._what}: the tar stream has no end marker at byte {self._offset}; {last}")

    def _step(self, view: memoryview) -> int:
        """Consume the beginning of the view and return how many bytes that was."""
        if self._body_left:
            return self._take_body(view[: self._body_left])
        if self._padding_left:
            step = min(self._padding_left, len(view))
            self._padding_left -= step
            return step
        piece = view[: BLOCK_BYTES - len(self._partial_block)]
        block = self._partial_block + bytes(piece)
        if len(block) < BLOCK_BYTES:
            self._partial_block = block
        else:
            self._entry_offset = self._offset - len(self._partial_block)
            self._partial_block = b""
            self._take_block(block)
        return len(piece)

    def _take_block(self, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            if self._overrides:
                raise RefusedEntryError("an extended header is followed by no entry")
            self._zero_blocks += 1
            return
        self._zero_blocks = 0
        self._entry = block[:100].rstrip(b"\0")
        header = parse_header(block)
        self._kind = header.kind
        if header.kind in _METADATA_KINDS:
            self._begin_metadata(header)
        else:
            self._begin_entry(header)

    def _begin_metadata(self, header: Header) -> None:
        if header.size > _LONGEST_METADATA_BYTES:
            raise RefusedEntryError(f"a {_METADATA_KINDS[header.kind]} of {header.size} bytes is too long")
        self._metadata.clear()
        self._expect_body(header.size)

    def _begin_entry(self, header: Header) -> None:
        overrides, self._overrides = self._overrides, {}
        self._entry = overrides.get("path", header.name)
        size = _decimal(overrides["size"]) if "size" in overrides else header.size
        path = safe_path(self._entry)
        if header.kind == b"5":
            if size:
                raise RefusedEntryError("a directory claims to have content")
            self._sink.make_directory(path)
        elif header.kind in _FILE_KINDS:
            self._sink.begin_file(path)
            self._expect_body(size)
        else:
            kind = _REFUSED_KINDS.get(header.kind, f"an entry of unknown type {header.kind!r}")
            raise RefusedEntryError(f"{kind} is not allowed")

    def _expect_body(self, size: int) -> None:
        self._body_left = size
        self._padding_left = -size % BLOCK_BYTES
        if not size:
            self._end_body()

    def _take_body(self, piece: memoryview) -> int:
        if self._kind in _METADATA_KINDS:
            self._metadata += piece
        else:
            self._sink.write(piece)
        self._body_left -= len(piece)
        if not self._body_left:
            self._end_body()
        return len(piece)

    def _end_body(self) -> None:
        if self._kind == b"L":
            self._override("path", bytes(self._metadata).rstrip(b"\0"))
        elif self._kind == b"x":
            self._apply_pax(bytes(self._metadata))
        elif self._kind == b"g":
            _refuse_global_pax(bytes(self._metadata))
        elif self._kind != b"K":
            self._sink.end_file()

    def _apply_pax(self, data: bytes) -> None:
        for key, value in parse_pax(data):
            if key in ("path", "size"):
                self._override(key, value)

    def _override(self, key: str, value: bytes) -> None:
        # Readers disagree on which of two wins, and an archive that relies on it is not an honest one.
        if key in self._overrides:
            raise RefusedEntryError(f"two extended headers give one entry its {key}")
        self._overrides[key] = value


def parse_header(block: bytes) -> Header:
    """Decode one block of 512 bytes; raise RefusedEntryError if it is not a sound ustar or GNU header."""
    stated = _number(block[148:156], "checksum")
    actual = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stated != actual and stated != _signed(block, actual):
        raise RefusedEntryError(f"the header is corrupt: its checksum is {actual}, not {stated}")
    magic = block[257:263]
    if magic not in (b"ustar\0", b"ustar "):
        raise RefusedEntryError("the header is neither ustar nor GNU")
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0") if magic == b"ustar\0" else b""
    if prefix:
        name = prefix + b"/" + name
    return Header(name, _number(block[124:136], "size"), block[156:157])


def parse_pax(data: bytes) -> list[tuple[str, bytes]]:
    """Decode the `length key=value` records of a pax header; raise RefusedEntryError if one is malformed."""
    records = []
    position = 0
    while position < len(data):
        match = _RECORD_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise RefusedEntryError("a pax record is malformed")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not key or not equals:
            raise RefusedEntryError("a pax record has no key")
        if key.startswith(b"GNU.sparse."):
            raise RefusedEntryError("a sparse file is not allowed")
        records.append((key.decode("utf-8", "backslashreplace"), value))
        position = end
    return records


def safe_path(name: bytes) -> bytes:
    """Return the name without `.` and empty components; raise RefusedEntryError if it could leave the root."""
    if not name:
        raise RefusedEntryError("the name is empty")
    if len(name) > _LONGEST_NAME_BYTES:
        raise RefusedEntryError(f"a name of {len(name)} bytes is too long")
    if b"\0" in name:
        raise RefusedEntryError("the name holds a NUL byte")
    if name.startswith(b"/"):
        raise RefusedEntryError("the name is absolute")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise RefusedEntryError("the name holds `..`")
    if len(parts) > _MOST_COMPONENTS:
        raise RefusedEntryError(f"a name of {len(parts)} components is too deep")
    return b"/".join(parts)


def printable(name: bytes) -> str:
    """Return a name quoted and shortened for a message."""
    return repr(name[:200].decode("utf-8", "backslashreplace")) + ("…" if len(name) > 200 else "")


def _refuse_global_pax(data: bytes) -> None:
    refused = [key for key, _ in parse_pax(data) if key in ("path", "size", "linkpath")]
    if refused:
        raise RefusedEntryError(f"a pax global header sets {refused[0]}")


def _signed(block: bytes, unsigned_sum: int) -> int:
    """Return the checksum as old writers computed it, with signed bytes."""
    negative = sum(byte > 127 for byte in block[:148] + block[156:])
    return unsigned_sum - 256 * negative


def _number(field: bytes, what: str) -> int:
    """Decode an octal or base-256 header field; raise RefusedEntryError if it is no number from 0 to 2**63 - 1."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise RefusedEntryError(f"the {what} is negative")
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    else:
        match = _OCTAL.fullmatch(field)
        if match is None:
            raise RefusedEntryError(f"the {what} is not a number: {field!r}")
        value = int(match[1], 8)
    return _in_range(value)


def _decimal(text: bytes) -> int:
    if _DECIMAL.fullmatch(text) is None:
        raise RefusedEntryError(f"the size is not a number: {text[:40]!r}")
    return _in_range(int(text))


def _in_range(value: int) -> int:
    if value > _LARGEST_SIZE:
        raise RefusedEntryError(f"the size overflows: {value}")
    return value
