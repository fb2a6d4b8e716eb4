"""JSON bytes in, plain values out, for `validate`: says where bytes are not JSON and keeps keys that occur twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from trio_compute.errors import SpecError

LONGEST_INTEGER_DIGITS = 4300

_AT_BYTE = re.compile(r"^(?:JSON is malformed: )?(?P<what>.*?)(?: \(byte (?P<offset>\d+)\))?$", re.DOTALL)
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_AS_UTF8 = "save the file as UTF-8 without a byte order mark"
_HINTS = (
    (re.compile(rb"NaN|-?Infinity"), "JSON knows no NaN and no infinity"),
    (re.compile(rb"//|/\*|#"), "JSON knows no comments"),
    (re.compile(rb"'"), "texts and keys stand in double quotes"),
    (re.compile(rb"True|False|None"), "write true, false and null in lower case"),
    (re.compile(rb"[\x00-\x1f]"), r"inside a text write \n, \t or \u00XX"),
)
_HINT_BY_WORD = {
    "comma": "take away the comma before the closing bracket",
    "ends too early": "a bracket, brace or quote is still open",
    "keys must be": "texts and keys stand in double quotes",
    "trailing characters": "one file holds one document: take away what follows its closing brace",
    "escape": r"a backslash in a text is written \\",
    "number": "write numbers like 1, -1, 1.5 or 1e3",
}


class NotJson(SpecError):
    """Report bytes that are not a JSON document, with a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Repeated(dict[str, Any]):
    """Hold an object some of whose keys occur more than once: the last one counts, `pairs` has them all."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def read_document(data: bytes) -> Any:
    """Return the value that `data` spells; numbers beyond all ranges become infinite. Raises NotJson."""
    text = _decoded(data)
    try:
        msgspec.json.decode(data)
    except msgspec.ValidationError:
        pass  # a number out of range, which is for the walk over shapes to say
    except msgspec.DecodeError as error:
        raise _malformed(data, text, str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    return _loaded(text)


def pairs_of(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return all pairs of an object, those of repeated keys included."""
    return value.pairs if isinstance(value, Repeated) else value.items()


def _decoded(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise NotJson(f"line 1, column 1: the file begins with a byte order mark of {encoding}", _AS_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"{_place(data, error.start)}: a byte that is not UTF-8", _AS_UTF8) from None
    if not text.strip():
        raise NotJson("the file is empty", 'the smallest one is {"compute_ctl_config": {"jwks": {"keys": []}}}')
    return text


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        what = "the document ends too early" if is_cut else error.msg
        raise NotJson(f"line {error.lineno}, column {error.colno}: {what}", _hint(what, b"")) from None
    except RecursionError:
        raise _too_deep() from None


def _malformed(data: bytes, text: str, message: str) -> NotJson:
    parts = _AT_BYTE.match(message)
    assert parts is not None
    what, offset = parts["what"], len(data) if parts["offset"] is None else int(parts["offset"])
    if parts["offset"] is None:
        _loaded(text)
        return NotJson(r"a text holds half of a \u surrogate pair", r"write the character itself, or both halves")
    offset -= what == "trailing characters"  # msgspec names the byte after the first of them
    start = offset - 1 if data[offset - 1 : offset] == b"-" else offset
    return NotJson(f"{_place(data, offset)}: {what}", _hint(what, data[start : start + 10]))


def _place(data: bytes, offset: int) -> str:
    line_start = data.rfind(b"\n", 0, offset) + 1
    column = len(data[line_start:offset].decode(errors="replace")) + 1
    line = data.count(b"\n", 0, offset) + 1
    return f"line {line}, column {column}"


def _hint(what: str, found: bytes) -> str:
    by_word = [hint for word, hint in _HINT_BY_WORD.items() if word in what]
    by_text = [hint for pattern, hint in _HINTS if pattern.match(found)]
    return next(iter(by_word + by_text), "up to here it is JSON: look for a missing comma, quote or bracket")


def _too_deep() -> NotJson:
    return NotJson("JSON is nested too deeply", "no part of a configuration is deeper than a dozen levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else Repeated(pairs)


def _integer(text: str) -> float:
    return int(text) if len(text.removeprefix("-")) <= LONGEST_INTEGER_DIGITS else math.inf


def _refuse_constant(_name: str) -> NoReturn:
    raise NotJson("a number is NaN or infinite", "JSON knows no NaN and no infinity")
