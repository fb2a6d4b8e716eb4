"""JSON bytes in, wire structs or one clear error out (contract 01 §4)."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from trio_compute.errors import SpecError

T = TypeVar("T")

_PATH_SUFFIX = re.compile(r"^(?P<rule>.*?) - at (?P<where>.*)$", re.DOTALL)


class MalformedJson(SpecError):
    """Report bytes that are not JSON at all (HTTP 400); a wrong shape is a plain SpecError (HTTP 422)."""


def decode(data: bytes, wire: type[T]) -> T:
    """Return `data` as an instance of `wire`.

    Raises MalformedJson when it is not JSON, SpecError with a JSON path when its shape is wrong.
    """
    try:
        value = msgspec.json.decode(data, type=wire)
    except msgspec.ValidationError as error:
        raise located(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedJson(str(error)) from None
    except RecursionError:
        raise MalformedJson("JSON is nested too deeply") from None
    return value


def located(error: msgspec.ValidationError) -> SpecError:
    """Return what msgspec says of a wrong shape, its path apart."""
    parts = _PATH_SUFFIX.match(str(error))
    if parts is None:
        return SpecError(str(error), path="$")
    where = parts["where"].replace("`", "").removeprefix("key in ")
    return SpecError(parts["rule"], path=where)


def encode(value: object) -> bytes:
    """Return `value` as compact JSON bytes."""
    return msgspec.json.encode(value)
