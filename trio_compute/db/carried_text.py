"""Text of the catalog as `str` without loss: bytes that are no UTF-8 go back as they came (contract 11 T-06)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import adapters as standard
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.pq import Format

if TYPE_CHECKING:
    from psycopg.abc import Buffer

_ERRORS = "surrogateescape"
_TEXT_TYPES = ("text", "name", "varchar", "bpchar", '"char"')


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        return decoded(bytes(data))


class _BinaryTextLoader(_TextLoader):
    format = Format.BINARY


class _TextDumper(Dumper):
    oid = 0  # as psycopg's own: the server finds the type

    def dump(self, obj: str) -> bytes:
        return encoded(obj)


def decoded(data: bytes) -> str:
    """Return bytes as text, lone surrogates for what is no UTF-8."""
    return data.decode(errors=_ERRORS)


def encoded(text: str) -> bytes:
    """Return the bytes of a text that was decoded here, or of any other text as UTF-8."""
    return text.encode(errors=_ERRORS)


def is_text(name: str) -> bool:
    """Tell whether a name can be shown and sent as text."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def escaped(text: str) -> str:
    """Return a text that everybody can show, with an escape for each byte that is no text."""
    return encoded(text).decode(errors="backslashreplace")


def _map() -> AdaptersMap:
    made = AdaptersMap(standard)
    for name in _TEXT_TYPES:
        made.register_loader(name, _TextLoader)
        made.register_loader(name, _BinaryTextLoader)
    made.register_dumper(str, _TextDumper)
    return made


ADAPTERS = _map()
