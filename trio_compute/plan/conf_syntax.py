"""The language of postgresql.conf as the lexer of Postgres has it (guc-file.l): write values, read settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from trio_compute.errors import SpecError

# What needs no quotes: `1.5GB` does, since the lexer allows units behind integers only.
_BARE_VALUE = re.compile(r"\A(?:[A-Za-z][A-Za-z0-9_]*|[+-]?[0-9]+(?:\.[0-9]+|[A-Za-z]*))\Z")

_LETTER = r"[A-Za-z_\x80-\U0010ffff]"
_REST = r"[A-Za-z0-9_\x80-\U0010ffff]"
_SPACE = r"[ \t\r]"
# The lexer takes such a word for a name, so it must not be a value.
_QUALIFIED = re.compile(rf"{_LETTER}{_REST}*\.{_LETTER}{_REST}*")
_LINE = re.compile(
    rf"{_SPACE}*(?P<name>{_LETTER}{_REST}*(?:\.{_LETTER}{_REST}*)?)"
    rf"(?:{_SPACE}*={_SPACE}*|{_SPACE}+|(?=['+]))"
    r"(?P<value>'(?:[^'\\]|\\.|'')*'"
    rf"|{_LETTER}(?:{_REST}|[-._:/])*"
    r"|[+-]?(?:0x[0-9a-fA-F]+|[0-9]+)[A-Za-z]*"
    r"|[+-]?[0-9]*\.[0-9]*(?:[Ee][+-]?[0-9]+)?)"
    rf"{_SPACE}*(?:\#.*)?",
    re.DOTALL,
)
_DIRECTIVES = frozenset({"include", "include_dir", "include_if_exists"})
_ESCAPE = re.compile(rb"''|\\([0-7]{1,3})|\\(.)", re.DOTALL)
_CONTROL = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}

_BLANK = " \t\n\r\f\v"
_ITEM = re.compile(rf'[{_BLANK}]*(?:"((?:[^"]|"")*)"[{_BLANK}]*|([^,]*))(?:,|\Z)')


def quote(value: str) -> str:
    """Return a value as a quoted string of postgresql.conf: quotes and backslashes doubled, line breaks encoded."""
    if "\0" in value:
        raise SpecError("a setting holds a NUL character")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def is_bare(value: str) -> bool:
    """Tell whether a value is a plain word or number, which may stand without quotes."""
    return _BARE_VALUE.match(value) is not None


def read_settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of a file in order, names in lower case, values as Postgres understands them.

    Lines that Postgres would refuse are left out, and files that the text includes are not read.
    """
    for line in text.split("\n"):
        setting = read_line(line)
        if setting is not None:
            yield setting


def read_line(line: str) -> tuple[str, str] | None:
    """Return name and value of the setting on a line; None for comments, directives and what is malformed."""
    match = _LINE.fullmatch(line)
    if match is None or fold(match["name"]) in _DIRECTIVES:
        return None
    value = match["value"]
    if _QUALIFIED.fullmatch(value):
        return None
    return fold(match["name"]), _unquote(value) if value.startswith("'") else value


def effective_settings(text: str) -> dict[str, str]:
    """Return the value of each setting of a file: the last one counts (04 F-08)."""
    return dict(read_settings(text))


def fold(name: str) -> str:
    """Return a name in the form in which names are compared: Postgres folds ASCII letters only."""
    return "".join(character.lower() if character.isascii() else character for character in name)


def split_list(text: str) -> list[str]:
    """Return the members of a list such as shared_preload_libraries; empty ones are left out."""
    members = []
    for match in _ITEM.finditer(text):
        quoted, plain = match.groups()
        member = plain.strip(_BLANK) if quoted is None else quoted.replace('""', '"')
        if member:
            members.append(member)
    return members


def split_libraries(text: str) -> tuple[str, ...]:
    """Return the libraries of a list by their bare names."""
    return tuple(member.removeprefix("$libdir/").removesuffix(".so") for member in split_list(text))


def join_list(members: Iterable[str]) -> str:
    """Return members as the text of a list, in double quotes where they need them."""
    return ",".join(
        '"' + member.replace('"', '""') + '"' if set(member) & {",", '"'} or member != member.strip(_BLANK) else member
        for member in members
    )


def _unquote(text: str) -> str:
    # Bytes, as in Postgres: octal escapes may spell the bytes of one character.
    return _ESCAPE.sub(_unescape, text[1:-1].encode(errors="surrogatepass")).decode(errors="replace")


def _unescape(match: re.Match[bytes]) -> bytes:
    octal, character = match.groups()
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if character is None:
        return b"'"
    return _CONTROL.get(character, character)
